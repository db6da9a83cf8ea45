"""Files that survive: atomic writes, checked tensors, one commit point for several files."""

from mixvae.files._atomic import (
    atomic,
    canonical,
    checksum,
    one_line,
    read_json,
    read_regular,
    remove_orphans,
    write_bytes,
    write_json,
    write_text,
)
from mixvae.files._commits import commit, has_part, is_intact, read_manifest, read_part, settle
from mixvae.files._ordinary import check_file, check_folder, check_ordinary
from mixvae.files._tensors import (
    load_tensors,
    load_weights,
    save_weights,
    state_from_bytes,
    state_to_bytes,
    weights_from_bytes,
    weights_to_bytes,
)

__all__ = [
    "atomic",
    "canonical",
    "check_file",
    "check_folder",
    "check_ordinary",
    "checksum",
    "commit",
    "has_part",
    "is_intact",
    "load_tensors",
    "load_weights",
    "one_line",
    "read_json",
    "read_regular",
    "read_manifest",
    "read_part",
    "remove_orphans",
    "save_weights",
    "settle",
    "state_from_bytes",
    "state_to_bytes",
    "weights_from_bytes",
    "weights_to_bytes",
    "write_bytes",
    "write_json",
    "write_text",
]
