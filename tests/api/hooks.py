"""What the generated requests act upon, and where they are kept from waiting for ever."""

import json
import os
import urllib.error
import urllib.parse
import urllib.request

import schemathesis
from hypothesis import strategies as st

SERVER = os.environ["RADDLE_TEST_SERVER"]


def post(path, body):
    request = urllib.request.Request(SERVER + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def pending(path):
    """What waits for a person, by its thread."""
    with urllib.request.urlopen(f"{SERVER}{path}?status=pending&limit=500") as answer:
        return {one["thread_id"]: one["id"] for one in json.load(answer)["data"]}


def world():
    """Things of every kind that there is a path to. Most ids that are made up lead nowhere, and then to 404 only."""
    call = '@tool demo_put {"name": "a", "text": "b"}'
    thread = post("/v1/threads", {})["id"]
    turn = post(f"/v1/threads/{thread}/turns", {"prompt": call})["turn"]["id"]
    queued = post(f"/v1/threads/{thread}/turns", {"prompt": "later", "delivery": "queue"})["admission"]["id"]
    post(f"/v1/threads/{thread}/checkpoints", {"name": "c"})
    asks = post("/v1/threads", {})["id"]
    post(f"/v1/threads/{asks}/turns", {"prompt": "@ask who?"})
    run = post("/v1/runs", {"objective": "o"})["run_id"]
    post(f"/v1/runs/{run}/tasks", {"tasks": [{"id": "t", "task_type": "research"}]})
    checkpoint = post(f"/v1/runs/{run}/checkpoints", {})["checkpoint_id"]
    work = {"name": "j", "kind": "turn", "payload": {"thread_id": asks, "prompt": "x"}}
    job = post("/v1/jobs", work | {"run_at": "2199-01-01T00:00:00.000Z"})["id"]
    schedule = post("/v1/schedules", {"cron": "0 0 1 1 *", "job": work})["id"]
    return {
        "thread": thread, "turn": turn, "input": queued, "name": "c", "run": run, "task": "t", "checkpoint": checkpoint,
        "job": job, "schedule": schedule, "asks": asks,
    }  # fmt: skip


def worlds():
    made = [world() for _ in range(40)]
    # A turn asks soon after it has begun; whatever has not asked yet is one id less to try.
    approvals, questions = pending("/v1/approvals"), pending("/v1/questions")
    for one in made:
        one |= {"approval": approvals.get(one["thread"]), "question": questions.get(one["asks"])}
    return made


WORLDS = worlds()


@schemathesis.hook
def flatmap_path_parameters(context, path_parameters):
    """Ids that were made up, or some that there are: all of one world, since a turn belongs to its thread."""
    if not isinstance(path_parameters, dict):
        return st.just(path_parameters)

    def real(world):
        return path_parameters | {name: world[name] for name in path_parameters if world.get(name)}

    return st.one_of(st.sampled_from(WORLDS).map(real), st.just(path_parameters))


@schemathesis.hook
def before_call(context, case, kwargs):
    # Streams do not end: tests/streams.rs and its like read them.
    for name in list(case.headers or {}):
        if name.lower() == "accept" and "event-stream" in str(case.headers[name]).lower():
            case.headers[name] = "application/json"
    # Nor is anything learned by waiting up to five minutes for a turn; without the parameter it would be half of one.
    if case.operation.path.endswith("/wait"):
        case.query = {**(case.query or {})}
        asked = case.query.get("timeout_ms", 1)
        if str(asked).isdigit() and 1 < int(asked) <= 300_000:
            asked = 1
        case.query["timeout_ms"] = asked
    # A recording goes on as long as its reader, or the seconds that it asks for.
    if case.operation.path in ("/v1/trace", "/v1/admin/trace"):
        case.query = {**(case.query or {})}
        asked = case.query.get("seconds", 1)
        if str(asked).isdigit() and 1 < int(asked) <= 86_400:
            asked = 1
        case.query["seconds"] = asked


@schemathesis.serializer("application/x-ndjson")
def lines(context, value):
    return value if isinstance(value, (str, bytes)) else json.dumps(value)


def gets():
    """The routes that read something."""
    with urllib.request.urlopen(f"{SERVER}/openapi.json") as answer:
        return [path for path, verbs in json.load(answer)["paths"].items() if "get" in verbs]


GETS = gets()


@schemathesis.check
def deleted_is_gone(context, response, case):
    """Whatever could be read below something that was deleted cannot be read any more."""
    if case.method.upper() != "DELETE" or response.status_code != 204:
        return
    below = [path for path in GETS if path == case.operation.path or path.startswith(case.operation.path + "/")]
    for path in below:
        ids = WORLDS[0] | case.path_parameters
        for name, value in ids.items():
            path = path.replace("{%s}" % name, urllib.parse.quote(str(value), safe=""))
        try:
            with urllib.request.urlopen(f"{SERVER}{path}") as answer:
                status = answer.status
        except urllib.error.HTTPError as refused:
            status = refused.code
        with open("deleted", "a") as log:
            log.write(f"{status} {path}\n")
        if status not in (404, 410):
            raise AssertionError(f"GET {path} answered {status} after it was deleted")
