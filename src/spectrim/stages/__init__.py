"""Steps of a recipe: each changes the model of a job and leaves a plan or new blocks behind.

A stage is one file with a function of its name, ``(job, options)``, and a class ``Options``, whose
fields a recipe may set. Constants beside them, which are read without importing the file, say how
it goes together with other stages:

    LEAVES   facts that are true of the model behind it, words that stages share: "changed maps",
             maps are no longer the whole matrices of an ordinary model folder; "damage", what was
             rounded or set to zero and can be compared with what it was; "zeros"; "packed", some
             maps are whole numbers, "all packed", all of them; "paths", most maps will be paths
             through a trellis; "corrected"; "trained"
    CLEARS   facts that no longer hold behind it
    NEEDS    facts that must hold in front of it, each with the sentence that says so where one does
             not
    REFUSES  facts that must not hold in front of it, each with such a sentence, in which {earlier}
             is the stage that made it so
    NOTE     under which name ``job.notes`` holds what it found out: a dictionary, or a list of them
    REPORT   the sentence that the report makes of this, as spectrim.report.notes reads it

A fact may end in "if OPTION" or "unless OPTION": it then holds where that option is set, or is not.
"""

from __future__ import annotations

from spectrim.registry import Registry

stages = Registry("stage", "spectrim.stages")
