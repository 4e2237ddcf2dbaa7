"""A Hugging Face Hub on 127.0.0.1: as much of its HTTP protocol as publishing and loading models asks for.

It refuses what the client's own rules and the documented rules of the API refuse: names of repositories and branches,
the metadata of model cards, commits without a title or with a large file that is no LFS file. Git is left out: a commit
is a list of files under a number. Weights and pictures are large files (LFS), uploaded by PUT to a storage of
their own; Xet is not offered. Faults are injected with `fail`.
"""
import base64
import hashlib
import json
import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml
from huggingface_hub.utils import validate_repo_id

CUT, LOST = 0, -1


@dataclass
class File:
    content: bytes
    large: bool

    @property
    def oid(self):
        """Identifier of the content: SHA-256 of a large file, git's SHA-1 of another."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b'blob %d\0' % len(self.content) + self.content).hexdigest()


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, File]
    description: str = ''


@dataclass
class Repo:
    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)


@dataclass
class Fault:
    """An answer that replaces the next ones to a request.

    Status CUT cuts the connection while the request is read, LOST after it is carried out and before it is answered.
    """
    method: str
    path: str
    status: int
    headers: dict[str, str]
    message: str
    times: int


class HubError(Exception):
    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


class Hub:
    """State of the server.

    Attributes:
        url: Its address, for HF_ENDPOINT.
        storage_url: Address of the large files. It is another host, to which the client must not send its token.
        users: Answers of whoami-v2 by token.
        requests: Method and path of every request so far.
    """

    def __init__(self, folder: Path):
        self.storage = folder
        self.url = self.storage_url = ''
        self.users: dict[str, dict] = {}
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def add_user(self, token: str, name: str, role: str = 'write', orgs=(), scoped=None) -> None:
        access = {'displayName': 'test', 'role': role}
        if scoped is not None:
            access['fineGrained'] = {'canReadGatedRepos': False, 'global': [], 'scoped': scoped}
        self.users[token] = {
            'type': 'user', 'name': name, 'fullname': name, 'isPro': False, 'canPay': False,
            'orgs': [{'type': 'org', 'name': org, 'roleInOrg': org_role} for org, org_role in orgs],
            'auth': {'type': 'access_token', 'accessToken': access}}

    def fail(self, method: str, path: str, status: int, message='injected', times=1, **headers) -> None:
        """Answer the next requests whose path matches a regular expression with an error."""
        headers = {name.replace('_', '-'): str(value) for name, value in headers.items()}
        self.faults.append(Fault(method, path, status, headers, message, times))

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.times and re.search(fault.path, path):
                    fault.times -= 1
                    return fault

    def count(self, method: str, path: str) -> int:
        return sum(m == method and bool(re.search(path, p)) for m, p in self.requests)

    def files(self, repo_id: str, revision: str = 'main') -> dict[str, File]:
        return self.repos[repo_id].branches[revision][-1].files

    # Requests, each returning (body,), (body, status) or (body, status, headers).

    @staticmethod
    def is_large(path):
        return path.endswith(('.safetensors', '.png'))

    def whoami(self, request):
        return request.user(),

    def create(self, request):
        user, body = request.user(), request.json()
        repo_id = f"{body.get('organization') or user['name']}/{body['name']}"
        if '/' in body['name'] or not is_name(repo_id) or body.get('type', 'model') != 'model':
            raise HubError(400, f'Invalid repo name: {repo_id}')
        request.check_write(repo_id)
        if repo_id in self.repos:
            return {'error': 'You already created this model repo', 'url': f'{self.url}/{repo_id}'}, 409
        private = body.get('visibility') == 'private' or bool(body.get('private'))
        first = Commit(hashlib.sha1(repo_id.encode()).hexdigest(), 'initial commit', {
            '.gitattributes': File(b'*.safetensors filter=lfs diff=lfs merge=lfs -text\n', False)})
        self.repos[repo_id] = Repo(private, {'main': [first]})
        return {'url': f'{self.url}/{repo_id}', 'name': repo_id, 'id': repo_id}, 200

    def validate_yaml(self, request):
        content = request.json()['content']
        match = re.match(r'---\n(.*?)\n---\n', content, re.S)
        errors = [] if match else [{'message': 'no metadata block'}]
        errors += [{'message': message} for message in card_problems(yaml.safe_load(match[1]) if match else {})]
        return {'errors': errors, 'warnings': []}, 400 if errors else 200

    def preupload(self, request, repo_id, revision):
        request.check_write(repo_id, 'create_pr' in request.query)
        present = request.commit(repo_id, revision).files
        return {'files': [
            {'path': file['path'], 'shouldIgnore': False,
             'uploadMode': 'lfs' if self.is_large(file['path']) else 'regular',
             'oid': present[file['path']].oid if file['path'] in present else None}
            for file in request.json()['files']], 'commitOid': request.commit(repo_id, revision).oid},

    def lfs_batch(self, request, repo_id):
        request.user()
        objects = []
        for wanted in request.json()['objects']:
            oid = wanted['oid']
            missing = not (self.storage / oid).exists()
            objects.append({'oid': oid, 'size': wanted['size'], **({'actions': {
                'upload': {'href': f'{self.storage_url}/storage/{oid}'},
                'verify': {'href': f'{self.url}/{repo_id}.git/info/lfs/objects/verify'}}} if missing else {})})
        return {'transfer': 'basic', 'objects': objects},

    def lfs_put(self, request, oid):
        content = request.body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise HubError(400, 'content does not match its SHA-256')
        (self.storage / oid).write_bytes(content)
        return {},

    def lfs_verify(self, request, repo_id):
        body = request.json()
        path = self.storage / body['oid']
        if not path.exists() or path.stat().st_size != body['size']:
            raise HubError(404, 'object is not there')
        return {},

    def commit(self, request, repo_id, revision):
        pull_request = 'create_pr' in request.query
        request.check_write(repo_id, pull_request)
        branches = self.repos[repo_id].branches
        parent = request.commit(repo_id, revision)
        files, title = dict(parent.files), ''
        for line in request.body().splitlines():
            item = json.loads(line)
            value = item['value']
            if (item['key'] == 'header') != (not title):
                raise HubError(400, 'a commit begins with its header, and has one')
            if item['key'] == 'header':
                title, description = value['summary'], value.get('description', '')
                if value.get('parentCommit', parent.oid) != parent.oid:
                    raise HubError(412, 'A commit has happened since. Please refresh and try again.')
                if not title:
                    raise HubError(400, '"summary" is not allowed to be empty')
                continue
            if not re.fullmatch(r'(?!/)(?!.*(^|/)\.{1,2}(/|$))[^\\]+', value['path']):
                raise HubError(400, f"Invalid path: {value['path']}")
            if item['key'] == 'file':
                if self.is_large(value['path']):
                    raise HubError(400, f"{value['path']} must be uploaded as an LFS file")
                files[value['path']] = File(base64.b64decode(value['content']), False)
            elif item['key'] == 'lfsFile':
                if not (self.storage / value['oid']).exists():
                    raise HubError(400, f"LFS pointer of {value['path']} points to nothing")
                files[value['path']] = File((self.storage / value['oid']).read_bytes(), True)
            elif item['key'] == 'deletedFile':
                if files.pop(value['path'], None) is None:
                    raise HubError(404, "A file with this name doesn't exist", 'EntryNotFound')
            else:
                raise HubError(400, f"unknown operation {item['key']}")
        listing = sorted((name, file.oid) for name, file in files.items())
        oid = hashlib.sha1(f'{parent.oid}{title}{listing}'.encode()).hexdigest()
        answer = {'success': True, 'commitOid': oid, 'commitUrl': f'{self.url}/{repo_id}/commit/{oid}'}
        target = revision
        if pull_request:
            number = 1 + sum(name.startswith('refs/pr/') for name in branches)
            target = f'refs/pr/{number}'
            branches[target] = list(branches[revision])
            answer['pullRequestUrl'] = f'{self.url}/{repo_id}/discussions/{number}'
        branches[target].append(Commit(oid, title, files, description))
        return answer,

    def branch(self, request, repo_id, branch):
        request.check_write(repo_id)
        branches = self.repos[repo_id].branches
        if not re.fullmatch(r'(?!.*(\.\.|//|@\{|\.lock$|[/.]$))[^\x00-\x20~^:?*\[\\-][^\x00-\x20~^:?*\[\\]*', branch):
            raise HubError(400, f'Invalid reference name: {branch}')
        if branch in branches:
            raise HubError(409, f'Reference "{branch}" already exists')
        branches[branch] = list(branches['main'])
        return {},

    def info(self, request, repo_id, revision='main'):
        commit = request.commit(repo_id, revision)
        return {'id': repo_id, 'modelId': repo_id, 'sha': commit.oid, 'private': self.repos[repo_id].private,
                'tags': [], 'siblings': [{'rfilename': name} for name in commit.files]},

    def tree(self, request, repo_id, revision):
        files = request.commit(repo_id, revision).files
        listing = [{'type': 'file', 'path': name, 'size': len(file.content), 'oid': file.oid, **({'lfs': {
            'oid': file.oid, 'size': len(file.content), 'pointerSize': 100}} if file.large else {})}
                   for name, file in files.items()]
        return listing,

    def refs(self, request, repo_id):
        request.commit(repo_id, 'main')
        names = [name for name in self.repos[repo_id].branches if not name.startswith('refs/')]
        return {'branches': [{'name': name, 'ref': f'refs/heads/{name}', 'targetCommit': '0' * 40} for name in names],
                'converts': [], 'tags': []},

    def resolve(self, request, repo_id, revision, path):
        commit = request.commit(repo_id, revision)
        file = commit.files.get(path)
        if file is None:
            raise HubError(404, 'Entry not found', 'EntryNotFound')
        headers = {'X-Repo-Commit': commit.oid, 'ETag': f'"{file.oid}"', 'Accept-Ranges': 'bytes'}
        if file.large:
            return b'', 302, {**headers, 'X-Linked-Etag': f'"{file.oid}"', 'X-Linked-Size': str(len(file.content)),
                              'Location': f'{self.storage_url}/storage/{file.oid}'}
        return file.content, 200, headers

    def download(self, request, oid):
        if 'Authorization' in request.headers:
            raise HubError(400, 'a token came to the storage')
        return (self.storage / oid).read_bytes(), 200, {'ETag': f'"{oid}"', 'Accept-Ranges': 'bytes'}


# Identifiers of https://huggingface.co/docs/hub/repositories-licenses that the tests use.
LICENSES = {'apache-2.0', 'mit', 'bsd-3-clause', 'cc-by-4.0', 'cc-by-nc-4.0', 'cc-by-nc-sa-4.0', 'cc0-1.0', 'other',
            'unknown'}
TYPES = {'library_name': str, 'pipeline_tag': str, 'tags': list, 'license': str, 'datasets': list, 'metrics': list,
         'license_name': str, 'license_link': str, 'language': list, 'model-index': list}


def is_name(value) -> bool:
    """Whether the client accepts it as the name of a repository."""
    try:
        validate_repo_id(value)
    except ValueError:
        return False
    return isinstance(value, str)


def card_problems(data: dict) -> list[str]:
    """Reasons of the Hub to refuse the metadata of a model card."""
    problems = [f'"{name}" must be a {kind.__name__}' for name, kind in TYPES.items()
                if name in data and not isinstance(data[name], kind)]
    if 'license' in data and data['license'] not in LICENSES:
        problems.append('"license" must be one of the Hub\'s')
    bases = data.get('base_model', [])
    bases = [bases] if isinstance(bases, str) else bases
    for key, names in (('datasets', data.get('datasets', [])), ('base_model', bases)):
        problems += [f'"{key}[{index}]" {name} is not valid' for index, name in enumerate(names) if not is_name(name)]
    problems += [f'"tags" {tag!r} is not valid' for tag in data.get('tags', [])
                 if not isinstance(tag, str) or not 0 < len(tag) <= 100]
    for model in data.get('model-index', []):
        if not model.get('name') or not model.get('results'):
            problems.append('"model-index" needs a name and results')
        for result in model.get('results', []):
            if not result.get('task', {}).get('type'):
                problems.append('"model-index" needs the type of a task')
            if not all(isinstance(result.get('dataset', {}).get(key), str) for key in ('type', 'name')):
                problems.append('"model-index" needs type and name of a dataset')
            for metric in result.get('metrics') or [{}]:
                if not metric.get('type') or not isinstance(metric.get('value'), (int, float)):
                    problems.append('"model-index" needs type and number of a metric')
    return problems


REPO, REST = r'([\w.-]+/[\w.-]+)', r'([^/]+)'
ROUTES = [(method, re.compile(path), getattr(Hub, name)) for method, path, name in (
    ('GET', '/api/whoami-v2', 'whoami'),
    ('POST', '/api/repos/create', 'create'),
    ('POST', '/api/validate-yaml', 'validate_yaml'),
    ('POST', f'/api/models/{REPO}/preupload/{REST}', 'preupload'),
    ('POST', f'/api/models/{REPO}/commit/{REST}', 'commit'),
    ('POST', f'/api/models/{REPO}/branch/{REST}', 'branch'),
    ('GET', f'/api/models/{REPO}/refs', 'refs'),
    ('GET', f'/api/models/{REPO}/tree/{REST}', 'tree'),
    ('GET', f'/api/models/{REPO}/revision/{REST}', 'info'),
    ('GET', f'/api/models/{REPO}', 'info'),
    ('POST', f'/{REPO}.git/info/lfs/objects/batch', 'lfs_batch'),
    ('POST', f'/{REPO}.git/info/lfs/objects/verify', 'lfs_verify'),
    ('PUT', '/storage/([0-9a-f]{64})', 'lfs_put'),
    ('GET', '/storage/([0-9a-f]{64})', 'download'),
    ('GET', f'/{REPO}/resolve/{REST}/(.+)', 'resolve'),
)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    hub: Hub

    def do_GET(self):
        path, query = urlsplit(self.path).path, urlsplit(self.path).query
        self.query, self.rest = parse_qs(query), int(self.headers.get('Content-Length') or 0)
        self.hub.requests.append((self.command, path))
        method = 'GET' if self.command == 'HEAD' else self.command
        try:
            fault = self.hub.fault(self.command, path)
            self.lost = fault is not None and fault.status == LOST
            if fault and fault.status == CUT:
                self.rfile.read(min(self.rest, 1000))
                self.cut()
                return
            if fault and not self.lost:
                self.answer({'error': fault.message}, fault.status, fault.headers)
                return
            for known, pattern, handle in ROUTES:
                match = pattern.fullmatch(path)
                if known == method and match:
                    with self.hub.lock:
                        answer = handle(self.hub, self, *map(unquote, match.groups()))
                    self.answer(*answer)
                    return
            self.answer({'error': f'no route {self.command} {path}'}, 404)
        except HubError as error:
            self.answer({'error': str(error)}, error.status, {'X-Error-Code': error.code} if error.code else {})

    do_HEAD = do_POST = do_PUT = do_GET

    def cut(self):
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def answer(self, body, status=200, headers=None):
        self.body()  # what was not read would be taken for the next request
        if self.lost:
            self.cut()
            return
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = dict(headers or {}, **{'Content-Type': 'application/' + (
            'octet-stream' if isinstance(body, bytes) else 'json')})
        wanted = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range') or '')
        if status == 200 and wanted:
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers['Content-Range'] = f'bytes {start}-{end}/{len(content)}'
            content, status = content[start:end + 1], 206
        self.send_response(status)
        for name, value in {**headers, 'Content-Length': str(len(content))}.items():
            self.send_header(name, quote(value, safe='/:"=-_. ') if name == 'Location' else value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    def body(self):
        content, self.rest = self.rfile.read(self.rest), 0
        return content

    def json(self):
        return json.loads(self.body())

    def user(self):
        token = (self.headers.get('Authorization') or '').removeprefix('Bearer ')
        if token not in self.hub.users:
            raise HubError(401, 'Invalid credentials in Authorization header' if token else
                           'Invalid username or password.')
        return self.hub.users[token]

    def check_write(self, repo_id, pull_request=False):
        user = self.user()
        owners = {user['name']} | {org['name'] for org in user['orgs'] if org['roleInOrg'] != 'read'}
        if user['auth']['accessToken']['role'] == 'read' or not (repo_id.split('/')[0] in owners or pull_request):
            raise HubError(403, f"You don't have the rights to write to {repo_id}")

    def commit(self, repo_id, revision):
        """The last commit of a branch, or the one of that number."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or repo.private and repo_id.split('/')[0] != self.user()['name']:
            raise HubError(404, 'Repository not found', 'RepoNotFound')
        if revision in repo.branches:
            return repo.branches[revision][-1]
        for commit in sum(repo.branches.values(), []):
            if commit.oid == revision:
                return commit
        raise HubError(404, f'Invalid rev id: {revision}', 'RevisionNotFound')

    def log_message(self, *args):
        pass


@contextmanager
def serve(folder: Path):
    """Run a Hub during the context, with its large files under `folder`."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(('127.0.0.1', 0), type('HubHandler', (Handler,), {'hub': hub}))
    server.daemon_threads = True
    hub.url, hub.storage_url = (f'http://{host}:{server.server_port}' for host in ('127.0.0.1', 'localhost'))
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def contents(files):
    return {name: file.content for name, file in files.items() if name != '.gitattributes'}


def edit_on_hub(hub, repo_id, name, edit, title='Update README.md'):
    """Commit a change in the name of somebody else."""
    branch = hub.repos[repo_id].branches['main']
    files = dict(branch[-1].files)
    files[name] = File(edit(files[name].content) if name in files else edit(b''), False)
    branch.append(Commit(hashlib.sha1(f'{len(branch)}{title}'.encode()).hexdigest(), title, files))
