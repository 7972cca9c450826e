"""A monthly budget on the stack's resource group. It tells people; it stops nothing.

https://learn.microsoft.com/azure/cost-management-billing/costs/tutorial-acm-create-budgets
"""

from __future__ import annotations

import pulumi
from pulumi_azure_native import consumption

from infra.settings import Budget


def monthly(name: str, budget: Budget, *, scope: pulumi.Input[str]) -> consumption.Budget:
    """The budget, with a mail at 80 % spent and another as soon as Azure foresees more than 100 %."""
    return consumption.Budget(
        name,
        scope=scope,
        amount=budget.amount,
        category=consumption.CategoryType.COST,
        time_grain=consumption.TimeGrainType.MONTHLY,
        time_period=consumption.BudgetTimePeriodArgs(start_date=f"{budget.start}T00:00:00Z"),
        notifications={
            "spent": _mail(budget, 80, consumption.ThresholdType.ACTUAL),
            "foreseen": _mail(budget, 100, consumption.ThresholdType.FORECASTED),
        },
        # Azure refuses to move the start of a budget that exists, and to make one that starts in an earlier month.
        opts=pulumi.ResourceOptions(ignore_changes=["timePeriod"]),
    )


def _mail(budget: Budget, percent: int, kind: consumption.ThresholdType) -> consumption.NotificationArgs:
    return consumption.NotificationArgs(
        enabled=True,
        operator=consumption.OperatorType.GREATER_THAN,
        threshold=percent,
        threshold_type=kind,
        contact_emails=list(budget.emails),
    )
