"""Measurements of training, inference, loading and workers: taken live, kept in Arrow, stored with a run by CID.

``collector``    :class:`AIMLMetricsCollector`, which measures
``measurement``  what one measurement is
``table``        all of them as an Arrow table
``summary``      what they come to
``findings``     what they show: bottlenecks and faults
``run_measurements``  what a run reports
``autolog``      PyTorch and scikit-learn, measured without a line of theirs changed
"""

from __future__ import annotations

from holdfast.registry.measurements.collector import AIMLMetricsCollector
from holdfast.registry.measurements.measurement import Kind, Measurement

__all__ = ["AIMLMetricsCollector", "Kind", "Measurement"]
