"""`GET /metrics`: what Prometheus scrapes. Which metrics there are is in gateway/http/render/metrics.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import ClassVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.host.packages import own_version
from gateway.http.base.handler import BaseHandler
from gateway.http.base.websocket import SocketHandler
from gateway.http.render.metrics import HttpFigures, build_info, database_metrics, engine_metrics, http_metrics

_PROCESS = CollectorRegistry(auto_describe=False)
for _collector in (ProcessCollector, PlatformCollector, GCCollector):
    _collector(registry=_PROCESS)


class _Scrape(Collector):
    """One answer. It is made once, and read once."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class MetricsHandler(BaseHandler):
    """All metrics of this gateway, in the text format of Prometheus. They start anew with the process."""

    is_probe: ClassVar[bool] = True

    async def handle_request(self) -> None:
        service, figures = self.context.service, self.context.service.figures
        size_bytes = await figures.database_bytes()
        metrics = chain(
            [build_info(own_version(), figures.engine)],
            engine_metrics(figures, self.context.config.languages, is_ready=service.readiness().ready),
            database_metrics(figures, size_bytes),
            http_metrics(self._http_figures()),
            _PROCESS.collect(),
        )
        self.set_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
        await self.send(generate_latest(_Scrape(metrics)))

    def _http_figures(self) -> HttpFigures:
        http, answers = self.context.http, self.context.answers
        open_streams = Counter(isinstance(stream, SocketHandler) for stream in http.streams)
        return HttpFigures(
            requests=http.requests.counts,
            durations=http.requests.durations,
            in_flight=http.in_flight.count,
            streams={"events": open_streams[False], "websocket": open_streams[True]},
            connections=len(http.places),
            most_connections=http.places.limit,
            buffered_bytes={
                "bodies": (http.bodies.size_bytes, http.bodies.limit_bytes),
                "answers": (answers.size_bytes, http.bounds.answers_bytes),
            },
        )
