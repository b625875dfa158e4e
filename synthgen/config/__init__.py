"""One frozen tree of settings; every default cites the table or the section it comes from.

The tree is also the parameter schema of the Prefect flows. ``digest`` covers what determines
the bytes of a dataset and nothing else: not paths, workers, progress, nor the number of samples.
BL is the paper "Beyond Labels" (Stillger et al., VISAPP 2025).
"""

from __future__ import annotations

from synthgen.config.audit import (
    TOPS,
    AuditConfig,
    AuditorConfig,
    TopN,
    VerdictConfig,
)
from synthgen.config.reading import (
    describe,
    dump,
    load,
    load_audit,
    load_section,
    parse,
)
from synthgen.config.settings import (
    ALGORITHM_VERSION,
    ANNOTATION_STEPS,
    LABELING_VERSION,
    NEED_SELF_MAP,
    AnnotationConfig,
    CaptureConfig,
    ClusterConfig,
    Config,
    DatasetConfig,
    FeatureConfig,
    Fraction,
    GenerationConfig,
    LabelConfig,
    MaskConfig,
    ModelConfig,
    Section,
    SegmentationConfig,
    digest,
)

__all__ = [
    "ALGORITHM_VERSION",
    "ANNOTATION_STEPS",
    "LABELING_VERSION",
    "NEED_SELF_MAP",
    "TOPS",
    "AnnotationConfig",
    "AuditConfig",
    "AuditorConfig",
    "CaptureConfig",
    "ClusterConfig",
    "Config",
    "DatasetConfig",
    "FeatureConfig",
    "Fraction",
    "GenerationConfig",
    "LabelConfig",
    "MaskConfig",
    "ModelConfig",
    "Section",
    "SegmentationConfig",
    "TopN",
    "VerdictConfig",
    "describe",
    "digest",
    "dump",
    "load",
    "load_audit",
    "load_section",
    "parse",
]
