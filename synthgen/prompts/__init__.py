"""Prompts: reading and checking them, finding class names in their tokens.

Four questions: what is in a prompt file (`files`, `tables`, `coco`, `entries`), how a run gets at
the n-th of a million (`index`), where a text speaks of a class (`mentions`), and which tokens
those are (`tokens`). Nothing here loads a model; tokenizers are passed in.
"""

from synthgen.prompts.files import PACKAGED, load_prompts
from synthgen.prompts.index import PromptList, keep_prompts, open_prompts
from synthgen.prompts.mentions import mentioned_classes
from synthgen.prompts.tokens import attribution_text, class_token_spans, truncated_words

__all__ = [
    "PACKAGED",
    "PromptList",
    "attribution_text",
    "class_token_spans",
    "keep_prompts",
    "load_prompts",
    "mentioned_classes",
    "open_prompts",
    "truncated_words",
]
