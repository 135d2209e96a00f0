"""Python imports this module at its start when the folder is on PYTHONPATH: adds a flag for the recorder to Ludwig's
command line, where Ludwig keeps those of its contributors, such as --wandb."""

import importlib.util
import os
import pathlib
import sys


class RecorderLoader:
    def preload(self):
        pass

    def load(self):
        from tests.ludwig.recorder import Recorder

        return Recorder(pathlib.Path(os.environ["NEFTUNE_TEST_RECORD_DIR"]))


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "ludwig.contribs":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        exec_module = spec.loader.exec_module

        def execute(module):
            exec_module(module)
            module.contrib_registry["recorder"] = RecorderLoader()

        spec.loader.exec_module = execute
        return spec


sys.meta_path.insert(0, Finder())
