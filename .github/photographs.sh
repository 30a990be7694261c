#!/usr/bin/env bash
# The photographs' terms allow no re-publication, so a clone has none, and the tests that need them are skipped. Who may
# have them puts the three zip files behind an address and that into the secret PHOTOGRAPHS_URL; then they must be there.
#
#   PHOTOGRAPHS_URL=https://… .github/photographs.sh
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${PHOTOGRAPHS_URL:-}" ]; then
    echo "::notice::There are no photographs here (secret PHOTOGRAPHS_URL): tests that need them are skipped."
    # Where CI is set, a test fails for what is missing; not for these.
    echo "NO_PHOTOGRAPHS=1" >> "$GITHUB_ENV"
    exit 0
fi
mkdir -p ../shared/data
for name in petimages-180.zip petimages-photos.zip not-pets.zip; do
    curl --fail --silent --show-error --location --retry 3 --output "../shared/data/$name" "${PHOTOGRAPHS_URL%/}/$name"
    python3 -m zipfile --test "../shared/data/$name"
done
