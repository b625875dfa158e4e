"""What a Prefect server does on its own: crash zombie runs, pause what a failed audit condemns.

A flow run whose process is killed stays RUNNING for ever and holds its deployment's only slot.
Runs therefore send heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY), and a run whose heart was
heard once and then not for ``SILENCE`` is crashed.
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


def crash_zombies(silence: timedelta = SILENCE) -> AutomationCore:
    """The automation that crashes runs whose heartbeat stopped.

    Args:
        silence: Time without a heartbeat after which a run is taken for dead.
    """
    return AutomationCore(
        name="synthgen: crash zombie runs",
        description="A run whose process is gone ends as Crashed and frees its slot.",
        trigger=EventTrigger(
            after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{state}" for state in ENDED)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No heartbeat for {silence.total_seconds():.0f} s: the process is gone.",
            )
        ],
    )


def pause_after_failed_audits(deployments: Iterable[UUID]) -> AutomationCore:
    """The automation that pauses deployments once an audit run has failed.

    Args:
        deployments: Ids of the deployments that make what is audited.
    """
    return AutomationCore(
        name="synthgen: pause after a failed audit",
        description="Nothing more is made until somebody has looked; resume it in the UI.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Failed"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": ["flow"], "prefect.resource.name": ["audit"]}
            ),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[PauseDeployment(source="selected", deployment_id=item) for item in deployments],
    )


def put_automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create an automation, or replace the one of its name."""
    tree = automation.model_dump(mode="json", exclude={"owner_resource"})
    whole = AutomationCore.model_validate(tree)  # defaults count as set: unset ones are not sent
    standing = client.read_automations_by_name(automation.name)
    if standing:
        client.update_automation(standing[0].id, whole)
    else:
        client.create_automation(whole)
