"""The watchdog reports a stall once, and its end."""

import threading
import time

from flm_jax.training.watchdog import Watchdog
from helpers.loop import Batches, small_run


def test_watchdog_reports_a_stall_once_and_its_end(tmp_path, capsys):
    # A step of a busy machine may take half a second: a stall of the checkpoint told before would
    # leave that of the data untold.
    batches = Batches(slow=6, seconds=4.0)
    small_run(tmp_path, batches, watchdog_seconds=1.5)
    message = capsys.readouterr().err
    assert message.count("waiting for: data") == 1
    assert "after step 4, waiting for: data" in message  # step 5 is under way, unfetched
    assert "time.sleep(self._seconds)" in message
    assert message.count("training goes on") >= 1
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_watchdog_gives_the_first_step_ten_times_as_long(capsys):
    watchdog = Watchdog(0.1, 7)
    time.sleep(0.5)
    assert capsys.readouterr().err == ""
    time.sleep(0.8)
    assert "after step 7, waiting for: device" in capsys.readouterr().err
    watchdog.completed(8)
    watchdog.waits_for("checkpoint")
    time.sleep(0.3)
    watchdog.close()
    message = capsys.readouterr().err
    assert "step 8 was completed after 1." in message
    assert "after step 8, waiting for: checkpoint" in message


def test_watchdog_can_be_off(capsys):
    watchdog = Watchdog(0.0, 0)
    watchdog.completed(1)
    time.sleep(0.1)
    watchdog.close()
    assert capsys.readouterr().err == ""
