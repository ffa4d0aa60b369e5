"""Run by path, in a process of its own: loads a model, decodes, and says what memory that took.

Reads from standard input the JSON {"folder", "prompt", "new_tokens", "threads"}; without a folder
it only imports. Writes {"peak": bytes} as the last line of standard output.
"""

from __future__ import annotations

import json
import sys

from spectrim.processes import peak


def decode(folder: str, prompt: list[int], new_tokens: int) -> None:
    """Load the model in a folder as its users do, and decode that many tokens after a prompt."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    both = AutoConfig.from_pretrained(folder).is_encoder_decoder
    kind = AutoModelForSeq2SeqLM if both else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype="auto").eval()
    model.generate(
        torch.tensor([prompt]),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
    )


def main() -> None:
    """Do what standard input asks for."""
    asked = json.load(sys.stdin)
    import torch
    import transformers.modeling_utils  # noqa: F401

    import spectrim  # noqa: F401  (from_pretrained then knows the format of smaller models)

    torch.set_num_threads(asked["threads"])
    if asked["folder"]:
        decode(asked["folder"], asked["prompt"], asked["new_tokens"])
    print(json.dumps({"peak": peak()}))


if __name__ == "__main__":
    main()
