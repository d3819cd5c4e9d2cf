# The image: etcd-migrate as the entrypoint, the etcds of all bundled minors, and the target's etcd, etcdctl and etcdutl
# where the official etcd image has them. docs/image.md says how to build it without pulling anything.
ARG GO_IMAGE=golang:1.26-bookworm

# Builds everything from the pinned modules, on the machine's own platform for the wanted one. A directory that
# image/tree.sh has filled stands in for this stage with --build-context build=DIR.
FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS build
ARG TARGETARCH
ARG MINORS
ARG TARGET
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    ARCH=$TARGETARCH image/tree.sh /tree

FROM scratch
# What changes least comes first, so that a new etcd-migrate is one small layer.
COPY --from=build --chown=0:0 /tree/etcds/ /
COPY --from=build --chown=0:0 /tree/target/ /
COPY --from=build --chown=0:0 /tree/tool/ /
COPY --from=build --chown=65532:65532 /tree/data/ /var/lib/

ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="etcd-migrate" \
      org.opencontainers.image.description="Brings an etcd data dir to the version of the etcd that is to run on it and becomes it" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

ENV PATH=/usr/local/bin
USER 65532:65532
WORKDIR /var/lib/etcd
EXPOSE 2379 2380
ENTRYPOINT ["etcd-migrate"]
CMD ["run", "--", "etcd"]
