"""Prompts: reading and checking them, choosing among them, finding class names in their tokens.

Five questions: what is in a prompt file (`files`, `tables`, `coco`, `entries`), how a run gets at
the n-th of a million (`index`), which prompts to take (`selection`), where a text speaks of a
class (`mentions`), and which tokens those are (`tokens`).
Nothing here loads a model; tokenizers are passed in.
"""

from synthgen.prompts.coco import load_coco
from synthgen.prompts.files import PACKAGED, load_prompts
from synthgen.prompts.index import PromptList, open_prompts, prompts_digest
from synthgen.prompts.mentions import mentioned_classes
from synthgen.prompts.selection import balance, class_counts
from synthgen.prompts.tokens import attribution_text, class_token_spans, truncated_words

__all__ = [
    "PACKAGED",
    "PromptList",
    "attribution_text",
    "balance",
    "class_counts",
    "class_token_spans",
    "load_coco",
    "load_prompts",
    "mentioned_classes",
    "open_prompts",
    "prompts_digest",
    "truncated_words",
]
