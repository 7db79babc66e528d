"""What a kernel image holds when nobody says otherwise: the packages a data analyst expects, and what is preloaded.

Names only, so that configuration can repeat them without importing Docker.
"""

from __future__ import annotations

DEFAULT_DEPENDENCIES: tuple[str, ...] = (
    "numpy",
    "pandas",
    "matplotlib",
    "scipy",
    "pillow",
    "seaborn",
    "sympy",
    "scikit-learn",
    "statsmodels",
    "networkx",
    "openpyxl",
    "xlsxwriter",
    "xlrd",
    "pyarrow",
    "requests",
    "beautifulsoup4",
    "lxml",
    "tabulate",
    "python-dateutil",
    "pyyaml",
    "tqdm",
)

DEFAULT_PRELOAD: tuple[str, ...] = ("numpy", "pandas", "matplotlib.pyplot")
