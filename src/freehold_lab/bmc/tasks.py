"""Tasks and the TaskService: work that outlives its request (DSP0266, 12 "Asynchronous operations")."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from freehold_lab.bmc.core import OK, ROOT, Call, JsonObject, Reply, Resource, collection, link
from freehold_lab.bmc.messages import BASE, message_body

SERVICE = f"{ROOT}/TaskService"
FAILED = ("Exception", "Cancelled")


@dataclass
class Task:
    id: str
    name: str
    started: str
    state: str = "Running"
    percent: int = 0
    ended: str = ""
    problem: str = ""
    operation: str = ""
    work: "asyncio.Task[None] | None" = field(default=None, repr=False)


class TaskBoard:
    """All tasks since the BMC started. `failed` is told the name and reason of each failure."""

    def __init__(self, now: Callable[[], str]) -> None:
        self._now = now
        self._next = 1
        self.tasks: dict[str, Task] = {}

    def start(
        self, name: str, operation: str, work: Callable[[Task], Awaitable[None]], failed: Callable[[str, str], None]
    ) -> Task:
        """Run `work` in the background; it may set `percent` of the task it is given."""
        task = Task(str(self._next), name, self._now(), operation=operation)
        self._next += 1
        self.tasks[task.id] = task
        task.work = asyncio.create_task(self._run(task, work, failed))
        return task

    async def _run(
        self, task: Task, work: Callable[[Task], Awaitable[None]], failed: Callable[[str, str], None]
    ) -> None:
        try:
            await work(task)
        except asyncio.CancelledError:
            task.state, task.ended = "Cancelled", self._now()
            raise
        except Exception as error:  # whatever the hardware says, the client reads it in the task
            task.state, task.problem = "Exception", str(error) or type(error).__name__
            failed(task.name, task.problem)
        else:
            task.state, task.percent = "Completed", 100
        task.ended = self._now()

    async def stop(self) -> None:
        """Cancel what runs and forget all tasks, as a restart of the BMC does."""
        running = [task.work for task in self.tasks.values() if task.work and not task.work.done()]
        for work in running:
            work.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self.tasks.clear()


def start_task(call: Call, name: str, work: Callable[[Task], Awaitable[None]]) -> Reply:
    """Start `work` and answer 202 with the task monitor. The fault `extra["task_stuck"]` makes it never end."""
    stuck = call.bmc.hardware.faults.extra.get("task_stuck")

    async def never(_: Task) -> None:
        await asyncio.Event().wait()

    def failed(name: str, problem: str) -> None:
        call.bmc.record("TaskFailed", name, problem, origin=SERVICE)

    task = call.bmc.tasks.start(name, call.uri, never if stuck else work, failed)
    headers = {"Location": f"{SERVICE}/TaskMonitors/{task.id}", "Retry-After": "1"}
    return Reply(202, headers=headers, show=f"{SERVICE}/Tasks/{task.id}")


def _find(call: Call) -> Task:
    task = call.bmc.tasks.tasks.get(call["task"])
    if task is None:
        raise call.missing()
    return task


async def _service(call: Call) -> JsonObject:
    return {
        "Name": "Task Service",
        "Status": OK,
        "ServiceEnabled": True,
        "DateTime": call.bmc.now(),
        "CompletedTaskOverWritePolicy": "Manual",
        "LifeCycleEventOnTaskStateChange": False,
        "Tasks": link(f"{SERVICE}/Tasks"),
    }


async def _members(call: Call) -> Iterable[str]:
    return list(call.bmc.tasks.tasks)


async def _task(call: Call) -> JsonObject:
    return task_body(_find(call))


def task_body(task: Task) -> JsonObject:
    failed = task.state in FAILED
    body: JsonObject = {
        "Name": task.name,
        "TaskState": task.state,
        "TaskStatus": "Critical" if failed else "OK",
        "PercentComplete": task.percent,
        "StartTime": task.started,
        "TaskMonitor": f"{SERVICE}/TaskMonitors/{task.id}",
        "Payload": {"HttpOperation": "POST", "TargetUri": task.operation},
        "Messages": [],
    }
    if task.ended:
        body["EndTime"] = task.ended
        key, arguments = ("GeneralError", (task.problem or task.state,)) if failed else ("Success", ())
        body["Messages"] = [message_body(BASE, key, arguments)]
    return body


async def _delete(call: Call) -> None:
    task = _find(call)
    if task.work and not task.work.done():
        task.work.cancel()
        await asyncio.gather(task.work, return_exceptions=True)
    del call.bmc.tasks.tasks[task.id]


RESOURCES = (
    Resource(SERVICE, "TaskService.v1_3_0.TaskService", _service),
    collection(f"{SERVICE}/Tasks", "Task", "Task Collection", _members),
    Resource(f"{SERVICE}/Tasks/{{task}}", "Task.v1_7_4.Task", _task, delete=_delete, privilege="ConfigureManager"),
)
