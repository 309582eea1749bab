"""The charts of reports and comparisons.

The content of a chart is a `Plot`, plain data (`plot`), made by the functions of `plot_builders`.
Two backends draw it: matplotlib for PNG and SVG files (`matplotlib_backend`), plotly for HTML pages
(`plotly_backend`). `report_charts` makes the charts of a report from its findings; `optuna_plots`
adds Optuna's own.
"""
