"""ImageService of CRI v1."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from criagent._proto import api_pb2, api_pb2_grpc
from criagent.cri.convert_common import required
from criagent.cri.convert_image import filesystem_usage, image_message, registry_auth
from criagent.cri.listing import Messages
from criagent.image.images import Images
from criagent.model import Image

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]
_CHUNK = 100


class ImageService(api_pb2_grpc.ImageServiceServicer):
    """Images of this node."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._messages = Messages[Image, api_pb2.Image](
            images.store, lambda image: image.id, self._message
        )

    def _message(self, image: Image) -> api_pb2.Image:
        return image_message(image, pinned=self._images.is_pinned(image))

    async def ListImages(
        self, request: api_pb2.ListImagesRequest, context: Context
    ) -> api_pb2.ListImagesResponse:
        return api_pb2.ListImagesResponse(images=self._listed(request.filter))

    async def StreamImages(
        self, request: api_pb2.StreamImagesRequest, context: Context
    ) -> AsyncIterator[api_pb2.StreamImagesResponse]:
        images = self._listed(request.filter)
        for at in range(0, len(images), _CHUNK):
            yield api_pb2.StreamImagesResponse(images=images[at : at + _CHUNK])

    def _listed(self, wanted: api_pb2.ImageFilter) -> list[api_pb2.Image]:
        if not wanted.image.image:
            return list(self._messages.all())
        found = self._images.find(wanted.image.image)
        return [] if found is None else [self._message(found)]

    async def ImageStatus(
        self, request: api_pb2.ImageStatusRequest, context: Context
    ) -> api_pb2.ImageStatusResponse:
        found = self._images.find(required(request.image.image, "image.image"))
        if found is None:
            return api_pb2.ImageStatusResponse()
        response = api_pb2.ImageStatusResponse(image=self._message(found))
        if request.verbose:
            config = found.config
            response.info["info"] = json.dumps(
                {
                    "chainID": found.layers[-1].chain_id if found.layers else "",
                    "manifestDigest": found.manifest_digest,
                    "platform": found.platform,
                    "created": found.created,
                    "imageSpec": {
                        "config": {
                            "User": config.user,
                            "Env": list(config.env),
                            "Entrypoint": list(config.entrypoint),
                            "Cmd": list(config.cmd),
                            "WorkingDir": config.working_dir,
                            "StopSignal": config.stop_signal,
                            "Labels": config.labels,
                        }
                    },
                    "layers": [layer.digest for layer in found.layers],
                }
            )
        return response

    async def PullImage(
        self, request: api_pb2.PullImageRequest, context: Context
    ) -> api_pb2.PullImageResponse:
        auth = registry_auth(request.auth) if request.HasField("auth") else None
        image = await self._images.pull(required(request.image.image, "image.image"), auth)
        return api_pb2.PullImageResponse(image_ref=image.id)

    async def RemoveImage(
        self, request: api_pb2.RemoveImageRequest, context: Context
    ) -> api_pb2.RemoveImageResponse:
        await self._images.remove(required(request.image.image, "image.image"))
        return api_pb2.RemoveImageResponse()

    async def ImageFsInfo(
        self, request: api_pb2.ImageFsInfoRequest, context: Context
    ) -> api_pb2.ImageFsInfoResponse:
        usage = filesystem_usage(self._images.fs_usage())
        return api_pb2.ImageFsInfoResponse(image_filesystems=[usage], container_filesystems=[usage])
