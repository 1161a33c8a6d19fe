# SPDX-License-Identifier: Apache-2.0
"""ImageService of CRI v1."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from criagent._proto import api_pb2, api_pb2_grpc
from criagent.cri.convert.common import required
from criagent.cri.convert.image import filesystem_usage, image_message, registry_auth
from criagent.cri.listing import Messages, pieces
from criagent.image.images import Images
from criagent.image.profiles.artifact import invalid
from criagent.image.profiles.profiles import SecurityProfiles
from criagent.model.image import Image
from criagent.runtime.node.handlers import Handlers
from criagent.store.images import ImageStore

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class ImageService(api_pb2_grpc.ImageServiceServicer):
    """Images of this node, unpacked for OCI runtime handlers."""

    def __init__(
        self, images: Images, store: ImageStore, profiles: SecurityProfiles, handlers: Handlers
    ) -> None:
        self._images = images
        self._profiles = profiles
        self._handlers = handlers
        self._pinned = images.pinned
        self._messages = Messages[Image, api_pb2.Image](
            store, lambda image: image.id, self._message
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
        for piece in pieces(self._listed(request.filter)):
            yield api_pb2.StreamImagesResponse(images=piece)

    def _listed(self, wanted: api_pb2.ImageFilter) -> list[api_pb2.Image]:
        if not wanted.image.image:
            if self._pinned != self._images.pinned:  # reloaded
                self._pinned = self._images.pinned
                self._messages.rebuild()
            return [*self._messages.all(), *map(self._message, self._images.added())]
        found = self._images.find(self._name(wanted.image), wanted.image.runtime_handler)
        return [] if found is None else [self._message(found)]

    async def ImageStatus(
        self, request: api_pb2.ImageStatusRequest, context: Context
    ) -> api_pb2.ImageStatusResponse:
        handler = request.image.runtime_handler
        found = await self._images.ready_for(self._name(request.image), handler)
        if found is None:
            return api_pb2.ImageStatusResponse()
        response = api_pb2.ImageStatusResponse(image=self._message(found))
        if request.verbose:
            response.info["info"] = json.dumps(
                {
                    "chainID": found.layers[-1].chain_id if found.layers else "",
                    "manifestDigest": found.manifest_digest,
                    "platform": found.platform,
                    "artifactType": found.artifact,
                    "created": found.created,
                    "imageSpec": await self._images.configuration(found),
                    "layers": [layer.digest for layer in found.layers],
                }
            )
        return response

    async def PullImage(
        self, request: api_pb2.PullImageRequest, context: Context
    ) -> api_pb2.PullImageResponse:
        auth = registry_auth(request.auth) if request.HasField("auth") else None
        image = await self._images.pull(
            self._name(request.image),
            auth,
            request.image.runtime_handler,
            request.sandbox_config.metadata.namespace,
        )
        return api_pb2.PullImageResponse(image_ref=image.id)

    async def RemoveImage(
        self, request: api_pb2.RemoveImageRequest, context: Context
    ) -> api_pb2.RemoveImageResponse:
        await self._images.remove(self._name(request.image), request.image.runtime_handler)
        return api_pb2.RemoveImageResponse()

    async def ImageFsInfo(
        self, request: api_pb2.ImageFsInfoRequest, context: Context
    ) -> api_pb2.ImageFsInfoResponse:
        return api_pb2.ImageFsInfoResponse(
            image_filesystems=map(filesystem_usage, self._images.fs_usages()),
            container_filesystems=map(filesystem_usage, self._images.container_fs_usages()),
        )

    # Security profiles from registries (KEP-6061).

    async def PullSecurityProfile(
        self, request: api_pb2.PullSecurityProfileRequest, context: Context
    ) -> api_pb2.PullSecurityProfileResponse:
        if request.profile_kind != api_pb2.Seccomp:
            raise invalid(
                f"profile_kind {request.profile_kind}", "only seccomp profiles are supported"
            )
        self._handlers.check_image(request.image.runtime_handler)
        auth = registry_auth(request.auth) if request.HasField("auth") else None
        namespace = request.sandbox_config.metadata.namespace
        cached = await self._profiles.pull(request.image.image, auth, namespace)
        return api_pb2.PullSecurityProfileResponse(cached=cached)

    async def ListSecurityProfiles(
        self, request: api_pb2.ListSecurityProfilesRequest, context: Context
    ) -> api_pb2.ListSecurityProfilesResponse:
        return api_pb2.ListSecurityProfilesResponse(
            profiles=[
                api_pb2.SecurityProfileInfo(digest=one.digest, refs=one.refs, size=one.size)
                for one in self._profiles.all()
            ]
        )

    async def RemoveSecurityProfile(
        self, request: api_pb2.RemoveSecurityProfileRequest, context: Context
    ) -> api_pb2.RemoveSecurityProfileResponse:
        await self._profiles.remove(required(request.digest, "digest"))
        return api_pb2.RemoveSecurityProfileResponse()

    def _name(self, spec: api_pb2.ImageSpec) -> str:
        """The reference or id of the image. Raises InvalidRequestError."""
        self._handlers.check_image(spec.runtime_handler)
        return required(spec.image, "image.image")
