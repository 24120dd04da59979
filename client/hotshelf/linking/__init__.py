"""Folders of other programs, filled with links to the shelf: `shelved` (what shows there), `kinds` (what a file of weights is),
`views` (which link goes where) and `links` (what has to change in a folder, and the change)."""
