"""Problems in the formats of the published benchmarks, and an imitated judge."""

import http.server
import json

from flm_jax.evaluation.benchmarks import chat_endpoint


def gsm8k_problems(count):
    return [{"question": f"{n}+{n}?", "answer": f"So.\n#### {2 * n}"} for n in range(count)]


def mt_bench_questions(count):
    return [
        {"question_id": 81 + n, "category": "math", "turns": [f"ask {n}", f"more {n}"]}
        for n in range(count)
    ]


class Judge(http.server.ThreadingHTTPServer):
    """Imitates an endpoint: grades 4 in first turns and 8 in second ones."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), JudgeHandler)
        self.asked, self.replies, self.headers = [], {}, []
        self.endpoint = chat_endpoint.Endpoint(
            f"http://127.0.0.1:{self.server_address[1]}/v1", "sesame", "judge/x", 5.0, 0.01
        )


class JudgeHandler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.headers.append((self.path, self.headers["Authorization"], body["model"]))
        user = body["messages"][1]["content"]
        self.server.asked.append(user)
        text = f"Fine. [[{8 if 'Second question' in user else 4}]]"
        status, content = 200, json.dumps({"choices": [{"message": {"content": text}}]})
        for word, reply in self.server.replies.items():
            if word in user:
                status, content = reply(len(self.server.asked), content)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *args):
        pass


HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef half(x):\n    """Half of x."""\n',
    "entry_point": "half",
    "canonical_solution": "    return math.fsum([x / 2])\n",
    "test": "def check(candidate):\n    assert candidate(3) == 1.5\n",
}


def mbpp_problem(number):
    return {
        "text": f"Write a function to add {number}.",
        "code": f"def f(x):\r\n  return x + {number}",
        "task_id": number,
        "test_setup_code": "y = 1",
        "test_list": [f"assert f(y) == {number + 1}", f"assert f(0) == {number}"],
    }
