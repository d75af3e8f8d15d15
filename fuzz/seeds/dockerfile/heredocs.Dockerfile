FROM busybox
RUN <<EOF
echo one
	echo "$two"
EOF
RUN <<-"END OF"
	#!/bin/sh
		echo $three
	END OF
RUN cat <<A - <<'B' 3<<C && true
first $a
A
second $b
B
third
C
RUN python3 <<EOF > /dev/null
print("x")
EOF
RUN <<EOF cat
x
EOF
COPY <<a.txt <<"b.txt" <<-c.txt /etc/
$expanded
a.txt
$not
b.txt
	tabs
	c.txt
ADD <<EOF /x
EOF
ONBUILD RUN <<EOF
inside
EOF
ONBUILD COPY <<-EOF /y
	inside
	EOF
RUN echo $((1 << 2)) "<<EOF" <<<word
2))
RUN ["cat", "<<EOF"]
RUN cat << SPACED
x
SPACED
RUN cat <<`quoted "open
CMD cat <<NOT
