"""The evaluation text that every conversion is judged on: llmserve/data/text/evaluation.txt.

    python -m demo.evaluation_text --data build/demo --out llmserve/data/text/evaluation.txt

The beginnings of modules of Python's standard library that the embedded model has not been trained on (PSF licence,
see the README beside the text), and between them paragraphs written for this. Neither is in what weights are calibrated
with. The bytes are those of the Python version that `demo.data` was run with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

MODULES = (
    "html/__init__.py",
    "secrets.py",
    "platform.py",
    "types.py",
    "unittest/main.py",
    "asynchat.py",
    "logging/handlers.py",
    "enum.py",
    "py_compile.py",
    "http/client.py",
    "zoneinfo/__init__.py",
    "multiprocessing/util.py",
)
CHARACTERS = 2400  # of each module, less what is cut off behind the last whole line

PROSE = """\
The harbour had been built in the wrong place, and everybody in the town knew it. Sand came round the headland with
every winter storm and settled between the two piers, so that by spring the larger boats could leave only at high
water. Each council promised to move the northern pier, and each found, once it had seen the engineers' estimate,
that the dredger could be repaired for one more year. The dredger was the oldest vessel in the port and the only one
that never went out.

To bake bread without a recipe, begin with what the flour will take. Weigh the flour, add six tenths of its weight
in water, a fiftieth in salt and as little yeast as you have patience for, and leave the bowl alone until the dough
has doubled. Fold it twice, shape it, and let it rest under a cloth while the oven becomes as hot as it can. If the
crust is dark and the loaf sounds hollow when you knock on its base, it is done; if it is pale, it needed ten
minutes more.

My grandmother kept her letters in a tin that had once held biscuits. They were sorted by the colour of the stamps,
not by date or by sender, because she had arranged them as a child and saw no reason to change the order later. When
we finally read them, a quarrel of three years came out backwards: first the apology, then the silence, then the
long and cheerful description of a wedding at which, as we now understood, something unforgivable had been said
about a hat.

A river does not flow at one speed. Near the bed and the banks the water is held back by stones and weeds, and it is
fastest a little below the surface, in the middle of a straight reach or on the outer side of a bend. That is why
bends grow: the quick water eats the outer bank, the slow water drops its sand on the inner one, and after some
centuries the loop is so narrow at its neck that a single flood cuts through it and leaves the old bed behind as a
crescent lake.

"Is it far?" asked the boy. The driver looked at him in the mirror and said that it depended on what one was used
to. For somebody from the islands, where every road ended at the sea within the hour, it would be very far indeed;
for herself, who drove it twice a day, it was no distance at all. She turned the radio down. "You can sleep if you
like. I will wake you at the bridge, because from there you can see the whole valley, and nobody should come here
for the first time asleep."

The committee met on the first Tuesday of each month to decide what the clock on the town hall should do about
summer. One party wanted it moved by an hour, as the government had ordered; another held that the sun over the
market square had not been consulted. A compromise was reached in the fourth year: the clock was stopped, a notice
under it gave the reasons for and against, and visitors agreed that no other clock in the county was so thoroughly
documented.
"""


def text(held_out: Mapping[str, str]) -> str:
    """Modules and paragraphs in turns. `held_out`: name → source, of modules that are not trained on."""
    paragraphs = [" ".join(paragraph.split("\n")).strip() for paragraph in PROSE.split("\n\n")]
    parts: list[str] = []
    for i, name in enumerate(MODULES):
        head = held_out[name][:CHARACTERS]
        parts.append(head[: head.rindex("\n")].strip())
        if i % 2 and i // 2 < len(paragraphs):
            parts.append(paragraphs[i // 2])
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/demo"))
    parser.add_argument("--out", type=Path, default=Path("llmserve/data/text/evaluation.txt"))
    arguments = parser.parse_args()
    held_out = json.loads((arguments.data / "held_out_text.json").read_text("utf-8"))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text(held_out), "utf-8")


if __name__ == "__main__":
    main()
