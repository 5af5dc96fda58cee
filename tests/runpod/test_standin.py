"""The stand-in for ``runpod``, as a subprocess of a handler meets it: an interpreter of its own with the folder on PYTHONPATH.

With ``-S`` no installed package is seen, so these run the same where the real one is installed.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supervisor.worker.runpod import STANDIN

TRY = """
import json, sys
def attempt(statement):
    try:
        exec(statement, {})
    except Exception as error:
        return [[kind.__name__ for kind in type(error).__mro__], str(error)]
print(json.dumps([attempt(statement) for statement in json.loads(sys.argv[1])]))
"""

PRESENT = [
    "import runpod; runpod.serverless.start",
    "import runpod.serverless; runpod.serverless.progress_update",
    "from runpod.serverless import start, progress_update, register_fitness_check",
    "from runpod import RunPodLogger",
    "from runpod.serverless.modules.rp_logger import RunPodLogger",
    "from runpod.serverless.modules import rp_logger, rp_progress",
    "from runpod.serverless.modules.rp_progress import progress_update",
    "import runpod; runpod.serverless.modules.rp_logger.RunPodLogger()",
    "import runpod; runpod.serverless.utils",
    "from runpod.serverless.utils import download_files_from_urls, upload_file_to_bucket, upload_in_memory_object",
    "from runpod.serverless.utils import rp_cleanup, rp_cuda, rp_debugger, rp_download, rp_upload, rp_validator",
    "from runpod.serverless.utils.rp_cleanup import clean",
    "from runpod.serverless.utils.rp_cuda import is_available",
    "from runpod.serverless.utils.rp_debugger import Checkpoints, FunctionTimer, LineTimer",
    "from runpod.serverless.utils.rp_debugger import get_debugger_output, clear_debugger_output",
    "from runpod.serverless.utils.rp_download import file, download_files_from_urls",
    "from runpod.serverless.utils.rp_upload import upload_image, files, upload_file_to_bucket, upload_in_memory_object",
    "from runpod.serverless.utils.rp_validator import validate",
    "import runpod; runpod.serverless.utils.rp_validator.validate",
    "from runpod.serverless.utils.upload import upload_image, bucket_upload",
    "from runpod.serverless.utils.validator import validate",
    "from runpod.serverless.utils import download; download.file, download.download_input_objects",
    "import sys, runpod.serverless.utils.rp_upload; assert not {'boto3', 'requests'} & set(sys.modules)",
    "import runpod; runpod.api_key = 'set, as on a real one'",
    "from runpod import *; serverless.start",
    "from runpod.serverless import *; start",
    "import runpod; assert runpod.__version__ == '1.12.0+supervise.standin'",
    "import runpod; assert not hasattr(runpod, 'Endpoint')",
    "import inspect, runpod; inspect.getmodule(runpod.serverless.start)",
]

ABSENT = {
    "import runpod; runpod.Endpoint": ("AttributeError", "runpod.Endpoint"),
    "from runpod import Endpoint": ("ImportError", "runpod.Endpoint"),
    "import runpod.endpoint": ("ImportError", "runpod.endpoint"),
    "import runpod.endpoint.asyncio": ("ImportError", "runpod.endpoint"),
    "from runpod.api import ctl_commands": ("ImportError", "runpod.api"),
    "import runpod; runpod.serverless.VolumeCache": ("AttributeError", "runpod.serverless.VolumeCache"),
    "from runpod.serverless.utils import rp_volume_cache": ("ImportError", "runpod.serverless.utils.rp_volume_cache"),
    "import runpod; runpod.serverless.utils.rp_ssrf": ("AttributeError", "runpod.serverless.utils.rp_ssrf"),
    "from runpod.serverless.utils import VolumeCache": ("ImportError", "runpod.serverless.utils.VolumeCache"),
    "from runpod.serverless.utils.rp_upload import get_boto_client": (
        "ImportError",
        "runpod.serverless.utils.rp_upload.get_boto_client",
    ),
    "from runpod.serverless.utils.upload import get_boto_client": (
        "ImportError",
        "runpod.serverless.utils.rp_upload.get_boto_client",
    ),
    "from runpod.serverless.utils.rp_download import HEADERS": (
        "ImportError",
        "runpod.serverless.utils.rp_download.HEADERS",
    ),
    "from runpod.serverless.modules.rp_http import send_result": ("ImportError", "runpod.serverless.modules.rp_http"),
    "from runpod.serverless.modules.rp_logger import JobLog": (
        "ImportError",
        "runpod.serverless.modules.rp_logger.JobLog",
    ),
    "from runpod.serverless.modules.rp_progress import log": (
        "ImportError",
        "runpod.serverless.modules.rp_progress.log",
    ),
}


def test_what_is_there(run_python) -> None:
    assert json.loads(run_python("-S", "-c", TRY, json.dumps(PRESENT)).stdout) == [None] * len(PRESENT)


def test_what_is_not_there_says_how_to_get_it(run_python) -> None:
    outcomes = json.loads(run_python("-S", "-c", TRY, json.dumps(list(ABSENT))).stdout)
    for (statement, (kind, name)), outcome in zip(ABSENT.items(), outcomes, strict=True):
        assert outcome is not None, statement
        kinds, message = outcome
        assert kind in kinds, statement
        assert (
            message
            == f"{name} is not in supervise's stand-in for the package runpod; for the real one: pip install runpod"
        )


LOGGED = """
import os, runpod
log = runpod.RunPodLogger()
log.debug("d"); log.info("i", "job-1"); log.warn({"w": 1}); log.error("e", request_id="job-2"); log.trace("t"); log.tip("hint")
log.log("l", "ERROR", "job-3"); log.secret("key", "abcd"); log.secret("key", "a")
os.environ["RUNPOD_DEBUG_LEVEL"] = "error"
log.warn("too low now"); log.error("high enough")
log.set_level(4); runpod.RunPodLogger().info("too low"); runpod.RunPodLogger().warn("all loggers share it")
log.set_level("notset"); log.error("nothing"); log.tip("nothing")
for wrong in ("loud", 9):
    try: log.set_level(wrong)
    except ValueError as error: print(error)
"""


def test_logger(run_python) -> None:
    assert run_python("-S", "-c", LOGGED).stdout.splitlines() == [
        "DEBUG  | d",
        "INFO   | job-1 | i",
        "WARN   | {'w': 1}",
        "ERROR  | job-2 | e",
        "TIP    | hint",
        "ERROR  | job-3 | l",
        "INFO   | key: a**d",
        "INFO   | key: *",
        "ERROR  | high enough",
        "WARN   | all loggers share it",
        "Invalid debug level: loud",
        "Invalid debug level: 9",
    ]


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, ["DEBUG  | d", "INFO   | i"]),
        ({"RUNPOD_DEBUG_LEVEL": "INFO"}, ["INFO   | i"]),
        ({"RUNPOD_LOG_LEVEL": "trace", "RUNPOD_DEBUG_LEVEL": "ERROR"}, ["TRACE  | t", "DEBUG  | d", "INFO   | i"]),
        ({"RUNPOD_DEBUG_LEVEL": "nonsense"}, ["DEBUG  | d", "INFO   | i"]),
    ],
)
def test_logger_level_from_the_environment(run_python, env: dict[str, str], expected: list[str]) -> None:
    code = "import runpod; log = runpod.RunPodLogger(); log.trace('t'); log.debug('d'); log.info('i')"
    assert run_python("-S", "-c", code, **env).stdout.splitlines() == expected


def test_outside_of_a_worker_only_start_complains(run_python) -> None:
    code = (
        "import runpod\n"
        "assert runpod.serverless.register_fitness_check(print) is print\n"
        "runpod.serverless.progress_update({'id': 'x'}, progress=1)\n"
        "try: runpod.serverless.start({'handler': print})\n"
        "except SystemExit as ended: print(ended)\n"
    )
    assert "in a worker of supervise only" in run_python("-S", "-c", code).stdout


def test_gives_way_to_a_package_behind_it(run_python, fake_package: Path) -> None:
    code = "import sys, runpod.serverless.modules.worker_state as s; print(s.__file__, s.WORKER_ID); print(sys.path)"
    lines = run_python("-S", "-c", code, path=[STANDIN, fake_package]).stdout.splitlines()
    assert lines[0] == f"{fake_package / 'runpod/serverless/modules/worker_state.py'} gpu0-3"
    assert STANDIN in lines[1]


def test_a_package_that_fails_to_import_says_so(run_python, fake_package: Path) -> None:
    (fake_package / "runpod" / "__init__.py").write_text("import nothing_of_that_name\n")
    code = "try:\n    import runpod\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    assert run_python("-S", "-c", code, path=[STANDIN, fake_package]).stdout == "nothing_of_that_name\n"


def test_a_mere_folder_of_that_name_is_no_package(run_python, tmp_path: Path) -> None:
    (tmp_path / "runpod").mkdir()
    code = "import runpod; print(runpod.__version__)"
    assert run_python("-S", "-c", code, path=[STANDIN, tmp_path]).stdout == "1.12.0+supervise.standin\n"


def test_a_file_of_the_users_own_comes_first(run_python, tmp_path: Path) -> None:
    (tmp_path / "runpod.py").write_text("mine = 'mine'\n")
    (tmp_path / "script.py").write_text("import runpod; print(runpod.mine)\n")
    assert run_python("-S", "script.py").stdout == "mine\n"


TIMED = """
import asyncio, inspect
from runpod.serverless.utils import rp_debugger
@rp_debugger.FunctionTimer
def work():
    with rp_debugger.LineTimer("step") as step:
        return step
assert [work(), work()] == [None, None]
checkpoints = rp_debugger.Checkpoints()
checkpoints.add("a"); checkpoints.start("a"); checkpoints.stop("a"); checkpoints.add("a")
assert checkpoints.get_checkpoints() == []
checkpoints.clear()
@rp_debugger.FunctionTimer
async def later(): pass
assert inspect.iscoroutinefunction(later)
shown = rp_debugger.get_debugger_output()
assert sorted(shown) == ["system_info", "timestamps"] and shown["timestamps"] == []
assert sorted(shown["system_info"]) == ["os", "processor", "python_version", "runpod"]
assert rp_debugger.clear_debugger_output() is None
"""


def test_timers_take_no_time(run_python) -> None:
    run_python("-S", "-c", f"import runpod\n{TIMED}")
