FROM scratch AS a
COPY a b c/ /dest/
COPY --from=0 --chown=$U:$G --chmod=0755 --link /a /b
COPY --link=false --parents --exclude=*.md --exclude=**/x src/./a/b /d
COPY ["with space", "b", "/dest dir/"]
COPY --from=busybox:1 [a] /d
ADD https://example.com/x.tar.gz /x
ADD --checksum=sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d --unpack=true https://example.com/x.tar.gz /x
ADD --keep-git-dir=true --unpack=false --link --chown=a --chmod=u+x --exclude=b https://github.com/a/b.git#main:sub /src
ADD ["a.tar", "/"]
RUN --mount=type=bind,from=a,source=/x,target=/y,rw cat /y/a
RUN --mount=type=cache,id=apt,target=/var/cache/apt,sharing=locked,uid=0,gid=0,mode=0700 --mount=type=tmpfs,target=/tmp,size=64m apt-get update
RUN --mount=type=secret,id=token,env=TOKEN,required --mount=type=secret,source=x,target=/run/x,mode=0400,uid=1 --mount=type=ssh,required=true true
RUN --mount="type=bind,source=a b,target=/c" --mount='type=bind,"target=/d,e",readonly=false' true
RUN --mount=target=$a/x,source=${p##*/} --network=none --security=insecure --device=vendor.com/gpu=all,required --device=name=b true
RUN --network=host -- --not-a-flag
COPY -- --from /x
