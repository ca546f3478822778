"""Where weights live: from a name to a directory.

    store.find("124M")    # the directory of a model that is on this machine
    store.installed()     # all of them
    store.remove("124M")

Fetching a model is the work of `gpt2kit.store.download`, which is not imported here.
"""

from gpt2kit.store.folders import (
    ADAPTERS_FILE,
    BUNDLED,
    INT8_SUFFIX,
    MANIFEST,
    PEFT_FILE,
    TEXT_FILES,
    files_of_others,
    holds_model,
    int8_file,
    locked,
    staging_dir,
    undo_broken_swap,
    vocabulary_dir,
    weights_dir,
)
from gpt2kit.store.integrity import check_files
from gpt2kit.store.lookup import adapters_alone, directory_name, find, split_source
from gpt2kit.store.manifest import Manifest
from gpt2kit.store.models import (
    InstalledModel,
    Unfinished,
    bytes_in,
    installed,
    installed_saes,
    unfinished,
)
from gpt2kit.store.removal import removable, remove

__all__ = [
    "ADAPTERS_FILE",
    "BUNDLED",
    "INT8_SUFFIX",
    "MANIFEST",
    "PEFT_FILE",
    "TEXT_FILES",
    "InstalledModel",
    "Manifest",
    "Unfinished",
    "adapters_alone",
    "bytes_in",
    "check_files",
    "directory_name",
    "files_of_others",
    "find",
    "holds_model",
    "installed",
    "installed_saes",
    "int8_file",
    "locked",
    "removable",
    "remove",
    "split_source",
    "staging_dir",
    "undo_broken_swap",
    "unfinished",
    "vocabulary_dir",
    "weights_dir",
]
