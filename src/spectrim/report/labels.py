"""Labels of points that do not cover each other."""

from __future__ import annotations

from collections.abc import Sequence

from spectrim.report.drawing import LETTER, Drawing, Frame

Place = tuple[float, float, str]
"""Where a label may stand: right of and below its point, and which end of it is there."""

AROUND: tuple[Place, ...] = (
    (8, 4, "start"),
    (-8, 4, "end"),
    (0, -9, "middle"),
    (0, 18, "middle"),
    (6, -8, "start"),
    (-6, 17, "end"),
    (6, 17, "start"),
    (-6, -8, "end"),
    (0, -22, "middle"),
    (0, 31, "middle"),
    (8, -20, "start"),
    (-8, -20, "end"),
)
OFF_DIAGONAL: tuple[Place, ...] = ((6, 15, "start"), (-6, -8, "end"), *AROUND)

Box = tuple[float, float, float, float]


class Labels:
    """Puts labels beside points where nothing is yet, and leaves out those that fit nowhere."""

    HEIGHT = 11.0

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._boxes: list[Box] = []

    def keep_clear(self, x: float, y: float) -> None:
        """Let no label cover this point."""
        self._boxes.append((x - 5, y - 5, x + 5, y + 5))

    def keep_clear_line(self, corners: Sequence[tuple[float, float]]) -> None:
        """Let no label cover a line whose parts are level or upright."""
        for one, other in zip(corners, corners[1:], strict=False):
            (left, right), (top, bottom) = sorted((one[0], other[0])), sorted((one[1], other[1]))
            self._boxes.append((left - 1, top - 1, right + 1, bottom + 1))

    def write(
        self,
        drawing: Drawing,
        at: tuple[float, float],
        text: str,
        places: Sequence[Place] = AROUND,
    ) -> None:
        """Write the text at the first of the places, seen from the point, that is free."""
        wide = LETTER * self.HEIGHT * len(text)
        for right, down, anchor in places:
            x, base = at[0] + right, at[1] + down
            left = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * wide
            box = (left, base - self.HEIGHT, left + wide, base + 3)
            if self._free(box):
                self._boxes.append(box)
                drawing.text(x, base, text, "point", anchor)
                return

    def _free(self, box: Box) -> bool:
        frame = self._frame
        inside = box[0] >= frame.left and box[2] <= frame.right + 14
        inside = inside and box[1] >= frame.top - 8 and box[3] <= frame.bottom
        return inside and not any(_touch(box, other) for other in self._boxes)


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
