"""Reports of studies.

A report page goes one way: `findings` are read from the ledger, `charts` are made from them, and
`page` renders both with the text of `sentences` as HTML (`markup`) and PNG files. `comparison`
makes a page of any trials. A terminal shows `tables`, and `progress` while a study runs.
"""
