"""URIs as text."""


def name_of(uri: str) -> str:
    """Return the last part of a URI: `cars` of `s3://bucket/cars/`."""
    return uri.rstrip("/").rpartition("/")[2]


def parent_of(uri: str) -> str:
    """Return a URI without its last part."""
    return uri.rstrip("/").rpartition("/")[0]
