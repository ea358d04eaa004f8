"""`POST /features`: encode a picture now and keep its features, for heads that are asked for later."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from serving.answers.render import features_json
from serving.answers.schemas import FeaturesAnswer
from serving.errors import UnsupportedTaskError
from serving.gateways.http_pictures import check_repeats, picture_body, problem_answers, read_picture, server_timing
from serving.http_timeout import RequestTimeout
from serving.request_context import add_stage
from serving.service import SegmentationService
from serving.types import parse_tasks


class FeaturesQuery(BaseModel):
    """The options of `POST /features`; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid")

    tasks: str | None = Field(
        None,
        description="Tasks that will be asked for, separated by commas. Default: all of the bundle.",
        examples=["panoptic,depth"],
    )


def add_feature_route(app: FastAPI, service: SegmentationService) -> None:
    """Let `app` answer `POST /features`."""

    @app.post(
        "/features",
        openapi_extra=picture_body(""),
        summary="Encode one picture and keep its features",
        response_model=FeaturesAnswer,
        responses=problem_answers(UnsupportedTaskError),
    )
    async def features(
        request: Request,
        query: Annotated[FeaturesQuery, Query()],
        x_request_timeout_s: RequestTimeout = None,
    ) -> Response:
        """The features stay in the replica that answers, until others take their room."""
        check_repeats(request)
        service.features.check_on()
        named = parse_tasks(query.tasks)
        tasks = service.engine.check_tasks(service.engine.bundle.heads if named is None else named)
        async with service.admitted(x_request_timeout_s or service.settings.default_timeout_s) as deadline_s:
            reading_s = time.perf_counter()
            data = await read_picture(request, service.settings.max_upload_bytes)
            add_stage("read", reading_s)
            service.metrics.admission_s.observe(time.perf_counter() - request.state.begun)
            entry, timing = await service.keep_features(data, tasks, deadline_s)
        heads = service.engine.bundle.heads.values()
        answer = features_json(
            entry,
            timing,
            request_id=request.state.request_id,
            bundle=service.engine.bundle.name,
            tasks=[head.task for head in heads if entry.serves(head)],
        )
        return JSONResponse(answer, headers={"Server-Timing": server_timing(timing)})
