FROM scratch
# comment
RUN a \
  b
ENV k=v
COPY <<E /x
l1
l2
E
CMD ["x"]