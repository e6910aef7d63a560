"""How a trainer is started: as a child process, with our own trainers first on its path."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from advisor.ground.files import PLAN_FILE
from advisor.launch.call import Call
from advisor.launch.child import Child, guard_command, with_variables
from advisor.launch.child import Ended as Ended
from advisor.launch.machines import Guard, Machines, Message, gloo_interface
from advisor.plan.entries import Entry
from advisor.plan.vllm import URL_VARIABLE
from advisor.situation.past_runs import VARIABLE, past_runs_path

# Settings of torch's memory allocator: today's name, and the older one, which torch looks at first.
# Batches of ever new lengths split the memory into pieces that no longer fit; segments that can
# grow avoid that. A value of the user's own is left alone.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


class TrainerStarter(Struct, frozen=True, kw_only=True):
    """Starts trainers for one run, in the way the plan says."""

    call: Call
    # The run folder's lock, which the child holds on to; None: that of machine 0 does.
    lock_fd: int | None = None
    machines: Machines | None = None  # of the run, if it has several

    def train(
        self,
        entries: Sequence[Entry],
        run: Path,
        *,
        watch: Callable[[], object] | None = None,
        server: str | None = None,
    ) -> Ended:
        """Train one stage, of one task or of several, in one process (or one per GPU).

        Args:
            watch: Called about once a second until the process ends.
        """
        if self.machines is None:
            return self._run(self._training(entries, run), watch=watch, server=server)
        return self.machines.train(
            {
                "entries": [entry.name for entry in entries],
                "folder": os.path.relpath(run, self.call.run.folder),
                "server": server,
            },
            lambda arguments, guard: self._run(
                self._training(entries, run, arguments), watch=watch, server=server, guard=guard
            ),
        )

    def judge(self, entries: Sequence[Entry], run: Path) -> Ended:
        """Judge what several processes have trained and saved, in one."""
        return self._run([*self._one_process(entries, run), "--part", "judge"])

    def follow(self, machines: Machines) -> None:
        """Train what machine 0 says, until the run is done. Raises how it ended otherwise."""
        by_name = {entry.name: entry for entry in self.call.run.entries}

        def start(training: Message, arguments: list[str], guard: Guard) -> Ended:
            group = [by_name[name] for name in training["entries"]]
            run = (self.call.run.folder / training["folder"]).resolve()
            command = self._training(group, run, arguments)
            return self._run(command, server=training["server"], guard=guard)

        machines.follow(start)

    def _training(
        self, entries: Sequence[Entry], run: Path, rendezvous: Sequence[str] = ("--standalone",)
    ) -> list[str]:
        """The command that trains in all processes of this machine.

        With several it runs once per GPU, with ranks, by torch's own launcher. `accelerate launch`
        wraps the same launcher, but starts a single process if there is no GPU.
        """
        command, launch = self._one_process(entries, run), self.call.run.plan.launch
        if launch.world_size == 1:
            return command
        return [
            *_python("trainers.say.torchrun"),
            *rendezvous,
            *("--nproc-per-node", str(launch.processes)),
            "--no-python",
            "--",
            # Each worker dies with the launcher; 0, since the launcher's number is not known yet.
            *guard_command(command, parent=0),
        ]

    def _one_process(self, entries: Sequence[Entry], run: Path) -> list[str]:
        """The command that trains one stage, of one task or of several."""
        stage, options = entries[0].stage, self.call.options
        command = [
            *_python("trainers"),
            *(stage.objective, str(run / PLAN_FILE)),
            *("--stage", stage.name, "--run", str(run)),
        ]
        for entry in entries:
            command += ["--task", entry.task.name] if entry.task else []
        if options.dry_run:
            command.append("--dry-run")
        elif not options.judge:
            command.append("--no-judge")
        return [*command, *self._limit()]

    def compare_modules(self, run: Path) -> Ended:
        """Evaluate the module of every task on the held-out rows of every task."""
        command = [*_python("trainers.tools.cross_task"), str(run / PLAN_FILE), "--run", str(run)]
        return self._run([*command, *self._limit()])

    def run_module(self, module: str, *arguments: Path | str) -> Ended:
        """Run a module of the trainers with these arguments, on the device of the plan."""
        return self._run([*_python(module), *map(str, arguments)])

    def _limit(self) -> list[str]:
        most = self.call.options.max_steps
        return [] if most is None else ["--max-steps", str(most)]

    def _run(
        self,
        command: Sequence[str],
        *,
        watch: Callable[[], object] | None = None,
        server: str | None = None,
        guard: Guard | None = None,
    ) -> Ended:
        environment = self._environment()
        if server is not None:
            environment[URL_VARIABLE] = server
        keep_fds = [] if self.lock_fd is None else [self.lock_fd]
        with Child(command, environment, keep_fds=keep_fds) as child:

            def look() -> None:
                if watch is not None:
                    watch()
                if guard is not None:
                    guard(child)

            is_watched = watch is not None or guard is not None
            code = child.wait(look if is_watched else None)
        return Ended(code, child.is_asked)  # asked at the very end, too

    def _environment(self) -> dict[str, str]:
        """Variables that put our trainers first, and show them the GPUs of the plan alone."""
        env = dict(os.environ)
        own = [env["PYTHONPATH"]] if env.get("PYTHONPATH") else []
        env["PYTHONPATH"] = os.pathsep.join([str(self.call.package_folder), *own])
        env["PYTHONSAFEPATH"] = "1"
        if (memory := self.call.machine.ram_total_bytes) is not None:
            env["ADVISE_MEMORY_BYTES"] = str(memory)  # shown beside what is in use
        if self.machines is not None:
            env |= gloo_interface(self.machines.address)
        if past_runs_path() is None:
            env[VARIABLE] = "off"  # whatever word said so
        env["ADVISE_TELLS_ERRORS"] = "1"  # the trainer leaves error.json and need not print it too
        device = self.call.run.plan.launch.device
        if device == "cpu":
            env |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "-1"}
            return env
        env = with_variables(env, self.call.gpus.environment)
        if device == "cuda" and not any(env.get(name) for name in ALLOCATOR):
            env[ALLOCATOR[0]] = "expandable_segments:True"
        return env


def _python(module: str) -> list[str]:
    return [sys.executable, "-P", "-m", module]
