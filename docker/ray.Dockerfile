# The studio's image with Ray, for every machine of a cluster (docs/scaling.md). Build the plain one first.
FROM ace-music-studio
USER root
COPY requirements-ray.txt ./
RUN pip install -c constraints.txt -r requirements-ray.txt
USER studio
ENTRYPOINT []
