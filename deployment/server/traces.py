"""A span for each scoring request, sent to Application Insights. Off, and nothing of it imported, unless configured.

`APPLICATIONINSIGHTS_CONNECTION_STRING` says where to. A deployment with `app_insights_enabled` may have instead
`AML_APP_INSIGHTS_ENABLED` and `AML_APP_INSIGHTS_KEY` (github.com/microsoft/azureml-inference-server, its README), which
do as well. A span names the model, counts its tokens and times them, after OpenTelemetry's conventions for generative
AI (github.com/open-telemetry/semantic-conventions-genai), and is the caller's child where the request has a
`traceparent`. It holds no prompt and no answer. It has not been run against Azure.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployment.server.answering import Reply
from infra.cli import WRONG_USE, UserError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span

log = logging.getLogger("deployment.server")

SERVICE = "finetune-phi"
TIMEOUT = 5.0
"""Seconds in which Application Insights has to take a batch; it is tried twice."""
# the exporter's own: reports about itself to Microsoft, settings that it fetches, a metric for each batch
SILENT = (
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED",
    "APPLICATIONINSIGHTS_OPENTELEMETRY_RESOURCE_METRIC_DISABLED",
)


@dataclass(frozen=True)
class Traces:
    """Makes spans; a thread of the provider's sends them in batches, every five seconds."""

    provider: TracerProvider

    def around(self, app: ASGIApp, routes: Sequence[str]) -> ASGIApp:
        """`app` with a span around each request to `routes`, from its first byte to the answer's last."""

        async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] not in routes:
                await app(scope, receive, send)
                return
            status = 500  # what uvicorn says if the app breaks off without a word

            async def watched(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            span = self._begin(scope)
            try:
                await app(scope, receive, watched)
            finally:
                _end(span, status, scope.get("state", {}).get("reply"))

        return wrapped

    def _begin(self, scope: Scope) -> Span:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request = {"http.request.method": scope["method"], "http.route": scope["path"], "url.path": scope["path"]}
        return self.provider.get_tracer("deployment.server").start_span(
            f"{scope['method']} {scope['path']}",
            TraceContextTextMapPropagator().extract(headers),
            SpanKind.SERVER,
            {**request, "gen_ai.operation.name": "chat", "gen_ai.provider.name": SERVICE},
        )

    def close(self) -> None:
        """Send what is still held, for as long as two tries take."""
        self.provider.shutdown()


def _end(span: Span, status: int, reply: Reply | None) -> None:
    from opentelemetry.trace import StatusCode

    span.set_attribute("http.response.status_code", status)
    if reply is not None:
        span.set_attributes(_told(reply))
    if status >= 500 or (reply is not None and reply.outcome in ("failed", "late")):
        span.set_status(StatusCode.ERROR)
    span.end()


def _told(reply: Reply) -> dict[str, Any]:
    told: dict[str, Any] = {
        "gen_ai.request.model": reply.model,
        "gen_ai.response.model": reply.model,
        "gen_ai.response.id": reply.request_id,
    }
    if reply.jobs:
        told["finetune_phi.outcome"] = reply.outcome  # `error.type` would not arrive: the exporter leaves it out
        told["gen_ai.usage.input_tokens"] = sum(job.usage.prompt for job in reply.jobs)
        told["gen_ai.usage.cache_read.input_tokens"] = sum(job.row.reused for job in reply.jobs)
        told["gen_ai.usage.output_tokens"] = sum(job.usage.completion for job in reply.jobs)
    if reply.finished:
        told["gen_ai.response.finish_reasons"] = [reply.outcome]
    if (seconds := reply.seconds_to_first_token) is not None:
        told["gen_ai.response.time_to_first_chunk"] = seconds
    return told


def configured(environ: Mapping[str, str]) -> Traces | None:
    """What the environment asks for. Raises UserError, which does not repeat the connection string, if it cannot be."""
    address = _address(environ)
    if not address:
        return None
    try:
        exporter = _exporter(address)
    except ImportError:
        raise UserError(
            "azure-monitor-opentelemetry-exporter is not installed, and traces for Application Insights need it",
            next_command="pip install -r deployment/server/requirements.txt, or unset "
            "APPLICATIONINSIGHTS_CONNECTION_STRING",
        ) from None
    except ValueError:
        raise UserError(
            "APPLICATIONINSIGHTS_CONNECTION_STRING is no connection string of Application Insights "
            "(InstrumentationKey=…;IngestionEndpoint=https://…)",
            next_command="az monitor app-insights component show --app NAME -g GROUP --query connectionString",
            code=WRONG_USE,
        ) from None
    return Traces(_provider(exporter, environ))


def _address(environ: Mapping[str, str]) -> str:
    if given := environ.get("APPLICATIONINSIGHTS_CONNECTION_STRING"):
        return given
    if environ.get("AML_APP_INSIGHTS_ENABLED", "").lower() == "true" and (key := environ.get("AML_APP_INSIGHTS_KEY")):
        return f"InstrumentationKey={key}"
    return ""


def _exporter(address: str) -> SpanExporter:
    for name in SILENT:
        os.environ.setdefault(name, "true")
    from azure.monitor.opentelemetry.exporter import AzureMonitorTraceExporter

    # below that it logs requests with their headers, and what it could not deliver with the key; `_Telling` says it
    logging.getLogger("azure").setLevel(logging.CRITICAL)
    return AzureMonitorTraceExporter(
        connection_string=address,
        disable_offline_storage=True,  # a container's disk keeps nothing for a later one
        timeout=TIMEOUT,
        read_timeout=TIMEOUT,
        retry_total=1,
    )


def _provider(exporter: SpanExporter, environ: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Telling(SpanExporter):
        """Says once for each batch that it could not be delivered."""

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            result = exporter.export(spans)
            if result is not SpanExportResult.SUCCESS:
                log.warning("%d traces could not be delivered to Application Insights", len(spans))
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

    named = {"service.name": environ.get("OTEL_SERVICE_NAME", SERVICE), "service.instance.id": socket.gethostname()}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Telling()))
    return provider
