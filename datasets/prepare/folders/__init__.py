"""Images in class folders: `--source folder`.

Imports `tables` (a metadata.csv beside the images) and its siblings in `prepare`.
Enter at `folder.list_folder`; `layout` finds splits and classes from paths alone.
"""
