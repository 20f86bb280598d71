"""Quality-guided contrastive rationale distillation (QCRD): an experiment runner on Ray."""

__version__ = "0.1.0"
