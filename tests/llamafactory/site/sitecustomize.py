"""Python imports this module at its start when the folder is on PYTHONPATH: records every training run in the process.

Nothing of LLaMA-Factory is changed or imported early: the order of its imports is that of a run without this file.
"""

import importlib.abc
import importlib.util
import sys


def record_classic(trainer):
    from tests.support.recorder import RankRecorder

    trainer.DEFAULT_CALLBACKS.append(RankRecorder)  # each trainer makes one


def record_v1(base_trainer):
    from tests.llamafactory.recorders import record_v1
    from tests.support.recorder import RankRecorder

    record_v1(base_trainer.BaseTrainer, RankRecorder)


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls `actions[name](module)` when the module of that name has been imported."""

    def __init__(self, actions):
        self.actions = dict(actions)

    def find_spec(self, name, path=None, target=None):
        action = self.actions.pop(name, None)
        spec = importlib.util.find_spec(name) if action else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_act(module):
            execute(module)
            action(module)

        spec.loader.exec_module = execute_and_act
        return spec


actions = {"transformers.trainer": record_classic, "llamafactory.v1.core.base_trainer": record_v1}
sys.meta_path.insert(0, AfterImport(actions))
