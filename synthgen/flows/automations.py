"""What a Prefect server does on its own: crash zombie runs, pause what a failed audit condemns.

A flow run whose process is killed stays RUNNING for ever and holds its deployment's only slot.
Runs of ours therefore send heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY) and carry a tag: one
whose heart was heard once and then not for ``SILENCE`` is crashed. So is one that says it is
running and is not heard, or that never comes to run. Runs of others are left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, PauseDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

HEARTBEAT = "prefect.flow-run.heartbeat"
ENDED = ("Completed", "Failed", "Cancelled", "Crashed")
SILENCE = timedelta(seconds=90)
"""Three heartbeats of 30 seconds, the shortest that Prefect allows."""
STARTUP = timedelta(minutes=30)
"""From when a worker has taken a run: a new node, the pull of an image of gigabytes, imports."""
TAG = "prefect.tag.synthgen"
"""On every deployment and command, and so on their runs, which are set to send heartbeats."""
PAUSE = "synthgen: pause after a failed audit"
BEGUN = ("Running", "Retrying")
PUT_BACK = ("Scheduled", "AwaitingConcurrencySlot", "AwaitingRetry", "Paused", "Suspended")


def zombie_automations(
    silence: timedelta = SILENCE, startup: timedelta = STARTUP
) -> tuple[AutomationCore, AutomationCore, AutomationCore]:
    """All that end runs whose process is gone, wherever it was killed.

    Args:
        silence: Time without a heartbeat after which a run is taken for dead, also from its begin.
        startup: Time from when a worker took a run to its begin after which it is taken for dead.
    """
    ended, seconds = _states(ENDED), f"{silence.total_seconds():.0f} s"
    return (
        _crash(
            "synthgen: crash zombie runs",
            f"No heartbeat for {seconds}: the process is gone.",
            after={HEARTBEAT},
            expect={HEARTBEAT, *ended},
            within=silence,
        ),
        _crash(
            "synthgen: crash runs never heard",
            f"No heartbeat in the first {seconds}: the process is gone.",
            after=_states(BEGUN),
            expect={HEARTBEAT, *ended},
            within=silence,
        ),
        _crash(
            "synthgen: crash runs never started",
            f"Not running {startup.total_seconds():.0f} s after a worker took it: nothing "
            f"started.",
            after=_states(("Pending",)),
            expect={HEARTBEAT, *_states((*BEGUN, *PUT_BACK)), *ended},
            within=startup,
        ),
    )


def _states(names: Iterable[str]) -> set[str]:
    """The events of runs that enter these states."""
    return {f"prefect.flow-run.{name}" for name in names}


def _crash(
    name: str, message: str, after: set[str], expect: set[str], within: timedelta
) -> AutomationCore:
    """Crash a run of ours of which nothing that was expected is heard in time."""
    return AutomationCore(
        name=name,
        description="A run whose process is gone ends as Crashed and frees its slot.",
        trigger=EventTrigger(
            after=after,
            expect=expect,
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=_related("tag", "prefect.resource.id", TAG),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def _related(role: str, key: str, value: str) -> ResourceSpecification:
    """What an event must be related to."""
    return ResourceSpecification({"prefect.resource.role": [role], key: [value]})


def pause_after_failed_audits(deployments: Iterable[UUID]) -> AutomationCore:
    """The automation that pauses deployments once an audit of ours has failed.

    Args:
        deployments: Ids of the deployments that make what is audited.
    """
    return AutomationCore(
        name=PAUSE,
        description="Nothing more is made until somebody has looked; resume it in the UI.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=[
                _related("flow", "prefect.resource.name", "audit"),
                _related("tag", "prefect.resource.id", TAG),
            ],
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[PauseDeployment(source="selected", deployment_id=item) for item in deployments],
    )


def put_automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create an automation, or replace the one of its name."""
    tree = automation.model_dump(mode="json", exclude={"owner_resource"})
    whole = AutomationCore.model_validate(tree)  # defaults count as set: unset ones are not sent
    existing = client.read_automations_by_name(automation.name)
    if existing:
        client.update_automation(existing[0].id, whole)
    else:
        client.create_automation(whole)


def drop_automation(client: SyncPrefectClient, name: str) -> None:
    """Delete the automation of a name, if there is one."""
    for existing in client.read_automations_by_name(name):
        client.delete_automation(existing.id)
