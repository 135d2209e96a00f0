"""Python imports this module at its start when the folder is on PYTHONPATH: records every training run in the process.

Nothing of transformers is changed or imported early: the order of its imports is that of a run without this file.
"""

import importlib.abc
import importlib.util
import os
import sys


class AfterTrainer(importlib.abc.MetaPathFinder):
    """Adds a recorder to the Trainer's default callbacks, when they are defined."""

    waits = True

    def find_spec(self, name, path=None, target=None):
        if name != "transformers.trainer" or not self.waits:
            return None
        self.waits = False
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_record(module):
            execute(module)
            from pathlib import Path

            from tests.support.recorder import Recorder

            module.DEFAULT_CALLBACKS.append(Recorder(Path(os.environ["NEFTUNE_TEST_RECORD_DIR"])))

        spec.loader.exec_module = execute_and_record
        return spec


sys.meta_path.insert(0, AfterTrainer())
