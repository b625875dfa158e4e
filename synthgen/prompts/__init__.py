"""Prompts: reading and checking them, choosing among them, finding class names in their tokens.

Four questions, one file each: what is in a prompt file (`files`, `coco`), which prompts to take
(`selection`), where a text speaks of a class (`mentions`), and which tokens those are (`tokens`).
Nothing here loads a model; tokenizers are passed in.
"""

from synthgen.prompts.coco import load_coco
from synthgen.prompts.files import PACKAGED, load_prompts
from synthgen.prompts.mentions import mentioned_classes
from synthgen.prompts.selection import balance, class_counts
from synthgen.prompts.tokens import attribution_text, class_token_spans, truncated_words

__all__ = [
    "PACKAGED",
    "attribution_text",
    "balance",
    "class_counts",
    "class_token_spans",
    "load_coco",
    "load_prompts",
    "mentioned_classes",
    "truncated_words",
]
