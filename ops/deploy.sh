#!/usr/bin/env bash
# Put an image into service on this machine without losing a request, or leave the old one there.
#
#   ops/deploy.sh ghcr.io/OWNER/REPO/cats-dogs-inference@sha256:…
#   ops/deploy.sh --sample photos/ ghcr.io/OWNER/REPO/cats-dogs-inference:1.2.0
#   ops/deploy.sh --roll-back                the image before this one
#
#   --sample DIR|ZIP  labelled photos (folders cats and dogs): their share of right answers must be what the model's own
#                     test says, within what chance allows; wants Python with the extra "ops"   [DEPLOY_SAMPLE]
#   --watch SECONDS   how long both serve together before the old one leaves                    [20]
#   --evidence DIR    where to leave what there is to see of a failure                          [deploy-evidence]
#
# What happens: the image is pulled, and known by its digest from there on. It starts as a candidate beside what serves,
# where nobody is sent to it, and is asked: ops/smoke_test.sh, then the sample. Only then as many replicas of it as there
# are join those that serve, and are watched there. If all is well the old ones leave: told to go, they answer for a few
# seconds more, until the edge has heard. If anything is not, the new ones leave in the same way, and the old never did.
#
# Exit codes: 0 deployed; 1 rolled back, the old one serves; 2 called wrong, nothing was done; 3 nothing serves; 4 cut off
# or something unforeseen, and what was new is gone again as far as it could be. The image in service is the line CATSDOGS_IMAGE in .env (or
# COMPOSE_ENV_FILES), where `docker compose` finds it; CATSDOGS_IMAGE_BEFORE is the one before it. If the service wants
# keys, CATSDOGS_KEY is one. PYTHON is the Python to use.
set -euo pipefail
from=$PWD
cd "$(dirname "$0")/.."

usage() { sed -n '2,25s/^# \{0,1\}//p' ops/deploy.sh; }
wrong() { echo "$*" >&2; exit 2; }

sample=${DEPLOY_SAMPLE:-} watch=20 evidence=deploy-evidence image=''
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --roll-back) image=before; shift ;;
        --sample | --evidence | --watch)
            [ $# -ge 2 ] || wrong "$1 wants a value"
            [[ $1 = --watch || $2 = /* ]] && value=$2 || value=$from/$2
            declare "${1#--}=$value"
            shift 2
            ;;
        -*) wrong "$1 is no option; see --help" ;;
        *) image=$1; shift ;;
    esac
done
[ -n "$image" ] || { usage >&2; exit 2; }
[ -z "$sample" ] || [ -e "$sample" ] || wrong "$sample: no such folder or zip file"
[[ $watch =~ ^[0-9]+$ ]] || wrong "--watch $watch: not a number of seconds"
for program in docker curl flock; do command -v $program > /dev/null || wrong "$program is missing"; done

# Only one deployment at a time on one checkout.
exec 9< compose.yaml
flock --nonblock 9 || wrong "another deployment is under way"

[[ ${COMPOSE_ENV_FILES:-} != *,* ]] || wrong "COMPOSE_ENV_FILES must name one file, the one that remembers the image"
state=$(readlink -f "${COMPOSE_ENV_FILES:-.env}")
[ -e "$state" ] || (umask 077 && : > "$state")

remembered() { sed -n "s/^$1=\"\{0,1\}\([^\"]*\)\"\{0,1\}\r\{0,1\}$/\1/p" "$state" | tail -1; }

# The file is there whole, with the old lines or with the new, and as private as it was.
remember() {
    # In a chain, for where this is asked whether it succeeded, the shell does not stop at a failure by itself.
    cp -p "$state" "$state.new" && {
        { grep -v -e '^CATSDOGS_IMAGE=' -e '^CATSDOGS_IMAGE_BEFORE=' "$state" || [ $? = 1 ]; } &&
            printf 'CATSDOGS_IMAGE=%s\nCATSDOGS_IMAGE_BEFORE=%s\n' "$1" "$2"
    } > "$state.new" && sync "$state.new" && mv "$state.new" "$state"
}

say() { echo "$(date -u +%H:%M:%S) $*" | tee -a "$work/deploy.log"; }
candidate() { docker compose --profile deploy "$1" "${@:2}" candidate; }
replicas() { docker compose ps --quiet "$@" service; }
count() { wc -w <<< "$1"; }
of() { docker inspect --format "$2" "$1"; }
is_healthy() { [ "$(of "$1" '{{.State.Health.Status}} {{.RestartCount}}')" = "healthy 0" ]; }

# The name with its digest of an image that came from a registry; nothing for another.
digest_of() { docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$1" | { grep -F "$2@" || true; } | head -1; }
repository_of() { local name=${1%@*}; [[ ${name##*/} != *:* ]] || name=${name%:*}; echo "$name"; }

# Put the questions to whatever answers at a URL.
asked() {
    ops/smoke_test.sh "$1" 2>&1 | tee -a "$work/smoke_test.log" || return 1
    [ -z "$sample" ] || "${PYTHON:-python3}" -m ops collect "$sample" --url "$1" --at-least test --out "$work/sample.csv" \
        2>&1 | tee -a "$work/collect.log"
}

# Wait until containers are healthy.
healthy() {
    local until=$((SECONDS + 60)) container
    for container in $1; do
        until is_healthy "$container"; do
            [ "$(of "$container" '{{.State.Status}} {{.RestartCount}}')" = "running 0" ] || return 1
            [ "$(of "$container" '{{.State.Health.Status}}')" != unhealthy ] || return 1
            [ "$SECONDS" -lt "$until" ] || return 1
            sleep 0.5
        done
    done
}

# As many replicas of the image as there are come up beside them, and are what was asked for.
join() {
    local wanted container
    wanted=$(count "$old")
    [ "$wanted" -gt 0 ] || wanted=1
    docker compose rm --force service >> "$work/compose.log" 2>&1 # stopped ones, which would be started again
    CATSDOGS_IMAGE=$image docker compose up --detach --no-deps --no-recreate --no-build \
        --scale service=$((wanted + $(count "$old"))) service >> "$work/compose.log" 2>&1 || return 1
    new=$(replicas --all | { grep -v -x -F "${old:-none}" || true; })
    [ "$(count "$new")" = "$wanted" ] || { say "$(count "$new") replicas were made, not $wanted"; return 1; }
    for container in $new; do [ "$(of "$container" '{{.Config.Image}}')" = "$image" ] || return 1; done
    healthy "$new"
}

# What is around them comes up where it is not: the edge and what watches.
around() {
    local services
    services=$(docker compose config --services | grep -v -x service)
    # shellcheck disable=SC2086  # one word for each
    CATSDOGS_IMAGE=$image docker compose up --detach --no-deps --no-recreate --no-build --wait --wait-timeout 180 $services \
        >> "$work/compose.log" 2>&1 || say "not everything around it is healthy: docker compose ps"
}

# All healthy replicas are in the edge's pool, its answers are right, and for a while no new one has to be restarted.
proven() {
    local until=$((SECONDS + watch)) container well=0
    while [ "$SECONDS" -lt "$until" ]; do
        for container in $new; do
            is_healthy "$container" || { say "a replica has become unhealthy, or was restarted"; return 1; }
        done
        sleep 1
    done
    for container in $old $new; do if is_healthy "$container"; then well=$((well + 1)); fi; done
    until=$((SECONDS + 20))
    until [ "$(pool)" -ge "$well" ]; do
        [ "$SECONDS" -lt "$until" ] || { say "$(pool) of $well replicas are in the edge's pool"; return 1; }
        sleep 1
    done
    ops/smoke_test.sh "http://$(docker compose port edge 8000)" 2>&1 | tee -a "$work/smoke_test.log"
}

pool() {
    { docker compose exec -T edge wget -q -O - http://127.0.0.1:8405/metrics 2> /dev/null || true; } \
        | grep -c '^haproxy_server_status{proxy="service",.*state="UP"} 1' || true
}

# Replicas are told, answer what they have and what still comes, and stop.
leave() {
    # shellcheck disable=SC2086  # one word for each
    [ -z "$1" ] || { docker stop --time 20 $1 && docker rm $1; } > /dev/null
}

# What there is to see of containers, before they are gone; not their environment, which holds what is set.
keep() {
    local container
    for container in $1; do
        of "$container" '{"image": "{{.Image}}", "restarts": {{.RestartCount}}, "state": {{json .State}}, "limits": {{json .HostConfig}}}' \
            > "$work/inspect-${container:0:12}.json" || true
        docker logs --tail 5000 "$container" > "$work/log-${container:0:12}.txt" 2>&1 || true
    done
}

# Take away what is new, and leave the evidence.
undo() {
    local folder
    [ -z "$joining" ] || new=$(replicas --all | { grep -v -x -F "${old:-none}" || true; })
    keep "$new $(candidate ps --all --quiet 2> /dev/null)"
    docker compose --profile deploy ps --all > "$work/containers.txt" 2>&1 || true
    leave "$new" || true
    candidate rm --stop --force > /dev/null 2>&1 || true
    folder=$evidence/$(date -u +%Y-%m-%dT%H-%M-%SZ)
    mkdir -p "$folder"
    cp "$work"/* "$folder/"
    echo "evidence: $folder"
}

fail() {
    settled=yes
    say "$*: ${before:-nothing} serves"
    undo
    [ -n "$(replicas)" ] || exit 3
    exit 1
}

# Whatever ends the script finds things as they were, or as they should be.
end() {
    local code=$?
    trap - EXIT INT TERM HUP
    set +e
    if [ "$settled" = committed ]; then
        say "deployed, but cut off while the old ones left (exit code $code)"
        leave "$old"
        code=4
    elif [ "$settled" = no ]; then
        say "cut off (exit code $code)"
        undo
        code=4
    fi
    rm -rf "$work"
    exit $code
}

docker compose version > /dev/null || wrong "docker compose is missing, or no engine answers"
old=$(replicas) || wrong "docker compose does not take compose.yaml as it is set"
[ "$(count "$old")" -le 4 ] || wrong "$(count "$old") replicas: the edge has room for eight, old and new together"
before=$(remembered CATSDOGS_IMAGE)
if [ "$image" = before ]; then
    image=$(remembered CATSDOGS_IMAGE_BEFORE)
    [ -n "$image" ] || wrong "no image before this one is known; name one"
fi
# What runs was perhaps begun by `docker compose up` with a name that moves on.
if [ -n "$old" ] && [[ $before != *@sha256:* ]]; then
    before=$(of "${old%%$'\n'*}" '{{.Config.Image}}')
    known=$(digest_of "$(of "${old%%$'\n'*}" '{{.Image}}')" "$(repository_of "$before")")
    before=${known:-$before}
fi

work=$(mktemp -d) settled=no new='' joining=''
trap end EXIT
trap 'exit 130' INT TERM HUP

# A digest that is here need not come from the registry again, which may be what is down: so one can always go back.
if [[ $image != *@sha256:* ]] || ! docker image inspect "$image" > /dev/null 2>&1; then
    say "pull $image"
    docker pull --quiet "$image" > "$work/pull.log" 2>&1 || { cat "$work/pull.log"; fail "it cannot be pulled"; }
fi
if [[ $image != *@sha256:* ]]; then
    digest=$(digest_of "$image" "$(repository_of "$image")")
    [ -n "$digest" ] || fail "it has no digest, so it came from no registry"
    say "which is $digest"
    image=$digest
fi

say "the candidate, beside ${before:-nothing}"
export CATSDOGS_CANDIDATE=$image
candidate rm --stop --force > /dev/null 2>&1 || true
candidate up --detach --no-deps --no-build >> "$work/compose.log" 2>&1 || fail "it does not start, and nobody was sent to it"
healthy "$(candidate ps --all --quiet)" || fail "it does not become healthy, and nobody was sent to it"
asked "http://$(docker compose --profile deploy port candidate 8000)" || fail "it is no good, and nobody was sent to it"
candidate rm --stop --force > /dev/null 2>&1

say "its replicas join"
joining=yes
join || fail "its replicas do not become healthy: rolled back"
around
proven || fail "rolled back"

say "and the old ones leave"
[ "$image" != "$before" ] || before=$(remembered CATSDOGS_IMAGE_BEFORE)
# First, since what `docker compose up` would bring must not be another image than what serves.
remember "$image" "$before" || fail "it cannot be remembered in .env: rolled back"
settled=committed
leave "$old"
settled=yes
docker compose kill --signal HUP prometheus alertmanager > /dev/null 2>&1 || true # their files may be new as well
say "deployed: $image"
