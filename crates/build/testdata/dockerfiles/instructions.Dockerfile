# syntax=docker/dockerfile:1
# check=skip=JSONArgsRecommended;error=true
# A comment that belongs to nothing.

# VERSION of the base
ARG VERSION=12 SUITE="book worm"
ARG MIRROR

# base what all others build on
FROM --platform=$BUILDPLATFORM debian:${VERSION}-slim AS base
ARG VERSION
ARG a=1 b="2 3" c='4 $a' d=\"5 e
ENV PATH=/opt/bin:$PATH LANG="C.UTF-8" QUOTED='single $quoted' ESCAPED=a\ b EMPTY= PLUS="x"'y'
ENV old form with  several   words
LABEL org.opencontainers.image.title="A title" "quoted key"=value multi="one \
two"
LABEL legacy value
MAINTAINER Somebody <somebody@example.com>
WORKDIR /srv/${VERSION}
USER 1000:1000
VOLUME /data /var/lib/$LANG
VOLUME ["/with space", "/b"]
EXPOSE 80 443/tcp 8000-8010/udp $PORT
STOPSIGNAL SIGTERM
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
HEALTHCHECK NONE
HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=500ms --start-interval=2s --retries=3 CMD curl -f http://localhost/ || exit 1
HEALTHCHECK CMD ["true", "x"]
CMD ["a", "b \"c\"", "\u00e9"]
CMD echo "$HOME" && true
ENTRYPOINT ["/entry"]
ENTRYPOINT exec top -b
ENTRYPOINT []
ONBUILD RUN echo built on
ONBUILD COPY --chown=1:1 . /app
onbuild CMD ["x"]

FROM base
run true
Run ["/bin/true"]
RUN [ "not json ]
RUN
FROM scratch AS Final.Stage_1-x
