#!/usr/bin/env bash
# Tries compose.yaml for real: a gateway in a container, killed, taken down, and replaced by a newer image, with runs in
# flight. Needs the image of `make image`, and compose. Uses volumes and a network of its own, and removes them.
#
#   PROJECT, PORT              if cellblock-try and 8088 are taken
#   CELLBLOCK_POSTGRES_IMAGE   in place of postgres:18, where no registry is in reach
#   CELLBLOCK_BUILD_BASE       the base of the kernel image, if it is not the default
set -euo pipefail
cd "$(dirname "$0")/.."

project=${PROJECT:-cellblock-try}
url=http://127.0.0.1:${PORT:-8088}
image=${IMAGE:-$(sed -n 's/^version = "\(.*\)"/cellblock-gateway:\1/p' pyproject.toml)}
newer=$image-newer
work=$(mktemp -d)

if docker compose version >/dev/null 2>&1; then
    compose_program=(docker compose)
else
    compose_program=(docker-compose)
fi
compose() {
    "${compose_program[@]}" -p "$project" --project-directory "$work" -f "$work/compose.yaml" "$@"
}
end() {
    status=$?
    if [[ $status -ne 0 ]]; then
        compose logs --tail 30 || true
    fi
    compose down -v --timeout 60 >/dev/null 2>&1 || true
    docker rm -f "$project-alone" >/dev/null 2>&1 || true
    docker volume rm "$project-alone" >/dev/null 2>&1 || true
    docker image rm "$newer" >/dev/null 2>&1 || true
    rm -rf "$work"
    exit "$status"
}
trap end EXIT

say() { echo "== $*"; }
fail() {
    echo "FAILED: $*" >&2
    exit 1
}
expect() { # text, what it should hold
    [[ $1 == *"$2"* ]] || fail "expected $2 in: $1"
}
wait_for() { # seconds, command…
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "waited too long for: $*"
        sleep 0.5
    done
}
is_ready() { curl -fsS "$url/readyz"; }
api() { # path, further options of curl…
    local path=$1
    shift
    curl -sS -H "Authorization: Bearer $token" "$url$path" "$@"
}
begin() { # seconds that the run shall take; sets run_id
    api /runcode -N -H 'Accept: text/event-stream' -d timeout=120 --data-urlencode code="
import time
for n in range($1 * 10):
    print(n, flush=True)
    time.sleep(0.1)" >"$work/events" 2>/dev/null &
    wait_for 60 grep -q '"type":"stdout"' "$work/events"
    run_id=$(sed -n 's/.*"run_id":"\([^"]*\)".*/\1/p' "$work/events" | head -n 1)
}
is_over() { [[ $(api "/runs/$run_id") != *'"status":"running"'* ]]; }
check_run() { # seconds that it took: every line is there, once
    wait_for $(($1 + 60)) is_over
    api "/runs/$run_id" | python3 -c "
import json, sys
run = json.load(sys.stdin)
assert run['status'] == 'ok', run
assert run['output'].split() == [str(n) for n in range($1 * 10)], run['output'][-200:]"
}
gateway() { compose ps -q gateway; }

cp compose.yaml "$work"
mkdir -m 700 "$work/secrets"
password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
printf '%s\n' "$password" >"$work/secrets/database_password"
echo "postgresql://cellblock:$password@database/cellblock" >"$work/secrets/database_url"
cat >"$work/.env" <<ENV
DOCKER_GID=$(stat -c %g /var/run/docker.sock)
CELLBLOCK_LISTEN=127.0.0.1:${PORT:-8088}
CELLBLOCK_VERSION=${image#*:}
CELLBLOCK_POOL_SIZE=1
CELLBLOCK_POSTGRES_IMAGE=${CELLBLOCK_POSTGRES_IMAGE:-postgres:18}
CELLBLOCK_BUILD_BASE=${CELLBLOCK_BUILD_BASE:-python:3.13-slim}
ENV
unset CELLBLOCK_BUILD_BASE CELLBLOCK_POSTGRES_IMAGE

say "compose.yaml is understood"
compose config -q

say "up; a token; a run"
compose up -d
wait_for 900 is_ready
expect "$(curl -sS "$url/runcode" -d code=1)" '"code":"unauthorized"'
token=$(compose exec -T gateway cellblock token create --tenant alice 2>/dev/null | tr -d '\r')
expect "$token" cb_
answered() { [[ $(api /runcode -d session_id=chat --data-urlencode code='x = 6; print("hello")') == *'"output":"hello\n"'* ]]; }
wait_for 30 answered
kept=$(api /runs | sed -n 's/.*"run_id":"\([^"]*\)".*/\1/p' | head -n 1)
expect "$(compose exec -T gateway id -u)" 10001
wait_for 60 sh -c "docker inspect -f '{{.State.Health.Status}}' $(gateway) | grep -q '^healthy'"

say "the doctor, in there"
compose exec -T gateway cellblock doctor || fail "the doctor complains"

say "kill -9 in the middle of a run"
begin 15
kill -9 "$(docker inspect -f '{{.State.Pid}}' "$(gateway)")"
wait_for 60 is_ready
check_run 15
expect "$(api /runcode -d session_id=chat --data-urlencode code='print(x)')" '"output":"6\n"'

say "a newer image, with a run in flight that takes longer than a gateway waits"
printf 'FROM %s\nLABEL newer=1\n' "$image" | docker build -q -t "$newer" - >/dev/null
begin 50
sed -i "s/^CELLBLOCK_VERSION=.*/CELLBLOCK_VERSION=${newer#*:}/" "$work/.env"
expect "$(compose run --rm -T --no-deps gateway build 2>/dev/null)" cellblock-kernel:
compose up -d
wait_for 120 is_ready
[[ $(docker inspect -f '{{.Config.Image}}' "$(gateway)") == "$newer" ]] || fail "the old image still runs"
check_run 50
expect "$(api /runcode -d session_id=chat --data-urlencode code='print(x + 1)')" '"output":"7\n"'

say "down and up"
started=$SECONDS
compose down
((SECONDS - started < 30)) || fail "it took $((SECONDS - started)) s to end an idle gateway"
compose up -d
wait_for 120 is_ready
expect "$(api "/runs/$kept")" '"status":"ok"'

say "a dump while serving, restored into nothing"
compose exec -T database pg_dump -U cellblock -Fc cellblock >"$work/cellblock.dump"
compose exec -T gateway tar -c gateway_id secret >"$work/identity.tar"
api /sessions/chat -X DELETE
compose down -v
compose up -d database
wait_for 120 compose exec -T database pg_isready -h 127.0.0.1 -U cellblock -d cellblock
compose exec -T database pg_restore -U cellblock -d cellblock --clean --if-exists --single-transaction \
    <"$work/cellblock.dump"
compose run --rm -T --no-deps --entrypoint tar gateway -x <"$work/identity.tar"
compose up -d
wait_for 120 is_ready
expect "$(api "/runs/$kept")" '"status":"ok"'
expect "$(api /runcode -d session_id=chat --data-urlencode code='print(1)')" '"session_lost":true'
api /sessions/chat -X DELETE

say "alone, with an embedded database"
compose down -v
group=$(stat -c %g /var/run/docker.sock)
run_alone() { # options of docker run…
    docker run -e CELLBLOCK_POOL_SIZE=1 -e CELLBLOCK_BUILD_BASE="$(sed -n 's/^CELLBLOCK_BUILD_BASE=//p' "$work/.env")" \
        -v /var/run/docker.sock:/var/run/docker.sock "$@" 2>&1
}
run_alone -d --name "$project-alone" --stop-timeout 60 --group-add "$group" -v "$project-alone:/var/lib/cellblock" \
    -p "127.0.0.1:${PORT:-8088}:8000" "$image"
wait_for 120 is_ready
token=$(docker exec "$project-alone" cellblock token create 2>/dev/null)
wait_for 30 answered
api /sessions/chat -X DELETE
docker stop "$project-alone"
[[ $(docker inspect -f '{{.State.ExitCode}}' "$project-alone") == 0 ]] || fail "SIGTERM did not reach the gateway"

say "without the group of the socket, and without a volume, it says what is wrong"
expect "$(run_alone --rm "$image" || true)" "--group-add"
elsewhere=(--tmpfs /x:mode=1777 -e CELLBLOCK_SERVER_DATA_DIR=/x/d)
expect "$(run_alone --rm --group-add "$group" "${elsewhere[@]}" "$image" || true)" "a volume there"

say "all of it works"
