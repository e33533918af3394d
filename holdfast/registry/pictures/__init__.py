"""Pictures of measurements.

``visualization``    :func:`create_visualization`, the one door
``chart``            what a picture shows, whoever draws it
``..._chart(s)``     charts from measurements: training, serving, resources, the dashboard
``..._backend``      who draws: Matplotlib, Plotly, or plain text
``theme``            colours
``report``           the HTML report
``export``           files in a folder
``frame``            the epochs as a pandas table
"""

from __future__ import annotations

from holdfast.registry.pictures.visualization import Visualization, create_visualization

__all__ = ["Visualization", "create_visualization"]
