#!/usr/bin/env bash
# Is what answers at URL the service, does it know a cat, and is it quick? With curl alone.
#
#   ops/smoke_test.sh                                        http://localhost:8000
#   ops/smoke_test.sh http://localhost:8001 --model 2026.11.30-lite0-int8-c1b87386
#   ops/smoke_test.sh https://example.org --photo dog.jpg --label dogs --seconds 0.5
#
#   --photo FILE     a photo to ask about                    [tests/cat.jpg]
#   --label LABEL    what it shows: cats or dogs             [cats]
#   --model VERSION  the model that must answer              [any]
#   --seconds S      longest that the best of five may take  [1.0]
#
# Every check is said in a line; exit code 0 if all hold, 1 if one does not, 2 if it was called wrong. CATSDOGS_KEY is
# sent as the API key if it is set.
set -euo pipefail
export LC_ALL=C

usage() { sed -n '2,15s/^# \{0,1\}//p' "$0"; }

url=http://localhost:8000
photo=$(dirname "$0")/../tests/cat.jpg
label=cats model='' seconds=1.0
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --photo | --label | --model | --seconds)
            [ $# -ge 2 ] || { echo "$1 wants a value" >&2; exit 2; }
            declare "${1#--}=$2"
            shift 2
            ;;
        -*) echo "$1 is no option; see --help" >&2; exit 2 ;;
        *) url=${1%/}; shift ;;
    esac
done
[ -f "$photo" ] || { echo "$photo: no such file" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# The key goes through a file, so that no list of processes shows it.
printf '%s' "${CATSDOGS_KEY:+header = \"Authorization: Bearer $CATSDOGS_KEY\"}" > "$work/curlrc"

# Ask for a path; leaves its body in $work/body and its head in $work/head, says the status, 000 without an answer.
ask() {
    local path=$1
    shift
    curl --disable --noproxy localhost,127.0.0.1,::1 --config "$work/curlrc" --silent --max-time 15 --output "$work/body" --dump-header "$work/head" \
        --write-out '%{http_code} %{time_total}' "$@" "$url$path" 2> "$work/error" || true
}

# A member of a flat JSON object in $work/body.
member() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p" "$work/body"; }

check() {
    local what=$1 found=$2 wanted=$3
    if [ "$found" = "$wanted" ]; then
        echo "ok      $what: $found"
    else
        echo "FAILED  $what: $found, not $wanted"
        failed=1
    fi
}

: > "$work/body"
read -r status _ <<< "$(ask /health)"
check "alive" "$status" 200
read -r status _ <<< "$(ask /health/ready)"
check "ready" "$status" 200
[ "$status" = 200 ] || echo "        $(member detail)"
if [ -n "$model" ]; then check "model" "$(member model)" "$model"; fi

best=999 statuses=''
for _ in 1 2 3 4 5; do
    read -r status took <<< "$(ask /predict --form "file=@$photo")"
    statuses="$statuses $status"
    [ "$status" != 200 ] || best=$(printf '%s\n%s\n' "$best" "$took" | sort -g | head -1)
done
check "predicts" "${statuses# }" "200 200 200 200 200"
[[ $statuses != *401* ]] || echo "        it wants an API key: CATSDOGS_KEY"
check "knows $(basename "$photo")" "$(member verdict)" "$label"
if [ "$(printf '%s\n%s\n' "$best" "$seconds" | sort -g | head -1)" = "$best" ]; then
    echo "ok      quick: $best s, $seconds allowed"
else
    echo "FAILED  quick: $best s, $seconds allowed" # 999: never
    failed=1
fi

echo "This is no picture." > "$work/not-a-picture.jpg"
read -r status _ <<< "$(ask /predict --form "file=@$work/not-a-picture.jpg")"
check "refuses what is no picture" "$status $(member code)" "415 unsupported_format"
check "says so in the documented form" "$(tr -d '\r' < "$work/head" | tr '[:upper:]' '[:lower:]' | sed -n 's/^content-type: //p')" application/problem+json

shown=$(sed -E 's#://[^ ]*@#://***@#; s#\?.*#?***#' <<< "$url") # as shared/addresses.py does
[ $failed = 0 ] && echo "passed: $shown" || echo "failed: $shown"
exit $failed
