"""A file for `--external_plugins` of ms-swift: `--callbacks recorder` records each training run in the process."""

from swift.callbacks import callbacks_map

from tests.support.recorder import RankRecorder

callbacks_map["recorder"] = lambda args, trainer: RankRecorder()
