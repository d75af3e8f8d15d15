#escape=`
FROM scratch
# a comment
RUN one `
  # a comment between
  two `

  three` four`` `
	five
RUN path\to\file `$x "a`"b"
ENV win=C:\dir `
    x=a` b
   RUN indented   and   spaced   
#
# cleared above
WORKDIR \a
LABEL a=1 `   
b=2
EXPOSE 3 `
1 2
RUN last `
