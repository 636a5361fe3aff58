// Real engines as callers of noid-cni: Debian's podman (with its CNI network backend) and containerd's ctr. Each is asked first whether it can run a
// container without any network here; when it cannot, that is why the test is skipped.

import assert from 'node:assert/strict'
import { execFile, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { promisify } from 'node:util'
import { Lab } from '../daemon/harness.ts'
import { eventually } from '../eventually.ts'
import { missing } from '../plugins/needs.ts'
import { PLUGIN } from './caller.ts'

const run = promisify(execFile)
const has = (tool: string): boolean => spawnSync('sh', ['-c', `command -v ${tool}`]).status === 0
const lacks = (...tools: string[]): string | false => {
  const none = tools.find((t) => !has(t))
  return missing() || (none === undefined ? false : `needs ${none}`)
}

/** A container's root that has this system's programs. */
function rootfs(dir: string): string {
  const root = join(dir, 'rootfs')
  for (const d of ['usr', 'etc', 'proc', 'sys', 'dev', 'tmp', 'run', 'var'])
    mkdirSync(join(root, d), { recursive: true })
  for (const d of ['bin', 'sbin', 'lib', 'lib64']) symlinkSync(`usr/${d}`, join(root, d))
  return root
}

function home(t: TestContext): string {
  const dir = mkdtempSync(join(tmpdir(), 'noid-engine-'))
  // Podman's and containerd's mounts may take a moment to go.
  t.after(() => rmSync(dir, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 }))
  mkdirSync(join(dir, 'bin'))
  mkdirSync(join(dir, 'net.d'))
  symlinkSync(PLUGIN, join(dir, 'bin', 'noid'))
  return dir
}

function conflist(dir: string, lab: Lab, cniVersion: string): void {
  const capabilities = { portMappings: true, ips: true, mac: true }
  const plugins = [{ type: 'noid', network: 'pods', host: lab.paths.socket, capabilities }]
  writeFileSync(join(dir, 'net.d', 'noid.conflist'), JSON.stringify({ cniVersion, name: 'ntnoid', plugins }))
}

class Podman {
  readonly #dir: string
  readonly #base: readonly string[]

  constructor(t: TestContext, dir: string) {
    this.#dir = dir
    writeFileSync(
      join(dir, 'containers.conf'),
      [
        '[network]',
        'network_backend = "cni"',
        `cni_plugin_dirs = ["${join(dir, 'bin')}", "/usr/lib/cni"]`,
        `network_config_dir = "${join(dir, 'net.d')}"`,
        '[engine]',
        'cgroup_manager = "cgroupfs"',
        'events_logger = "none"',
        // The port is noid's to open.
        'enable_port_reservation = false',
      ].join('\n'),
    )
    this.#base = [
      ...['--root', join(dir, 'storage'), '--runroot', join(dir, 'runroot'), '--storage-driver', 'vfs'],
      ...['--cgroup-manager', 'cgroupfs', '--runtime', has('runc') ? 'runc' : 'crun'],
    ]
    t.after(() => this.do('rm', '-fa', '-t', '0').catch(() => {}))
  }

  async do(...argv: string[]): Promise<string> {
    const env = { ...process.env, CONTAINERS_CONF: join(this.#dir, 'containers.conf') }
    return (await run('podman', [...this.#base, ...argv], { env, timeout: 150_000 })).stdout
  }

  run(options: readonly string[], ...command: string[]): Promise<string> {
    const limits = ['--ulimit', 'nofile=1024:1024', '--ulimit', 'nproc=4096:4096']
    return this.do(
      'run',
      ...limits,
      ...options,
      '-v',
      '/usr:/usr:ro',
      '--rootfs',
      join(this.#dir, 'rootfs'),
      ...command,
    )
  }
}

const words = (e: unknown): string =>
  ((e as { stderr?: string }).stderr || (e as Error).message).trim().split('\n').at(-1) ?? ''

test('podman: two containers reach each other by name, a port is published, nothing is left', {
  skip: lacks('podman'),
  timeout: 500_000,
}, async (t) => {
  const dir = home(t)
  rootfs(dir)
  const podman = new Podman(t, dir)
  const unable = await podman.run(['--rm', '--network', 'none'], 'true').then(() => undefined, words)
  if (unable !== undefined) return t.skip(`podman runs no container here: ${unable}`)
  const lab = new Lab(t, 'real-main.ts')
  await lab.up()
  conflist(dir, lab, '0.4.0')
  const port = 21_875
  const web = ['-d', '--name', 'ntweb', '--network', 'ntnoid', '-p', `${port}:8000`]
  await podman.run(web, 'python3', '-c', SERVE)
  const [vm] = await lab.client.vms()
  assert.deepEqual([vm?.name, vm?.runtime, vm?.network], ['ntweb', 'netns', 'pods'])
  await eventually('it serves', async () =>
    fetch(`http://127.0.0.1:${port}/`).then(
      async (r) => (await r.text()) === 'hello',
      () => false,
    ),
  )
  const said = await podman.run(['--rm', '--network', 'ntnoid'], 'curl', '-sS', '-m', '60', 'http://ntweb:8000/')
  assert.equal(said, 'hello')
  await podman.do('rm', '-f', '-t', '0', 'ntweb')
  await eventually('nothing is attached', async () => (await lab.client.vms()).length === 0)
  assert.deepEqual(await lab.client.networks(), [])
})

const SERVE = `
import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'hello')
http.server.HTTPServer(('', 8000), H).serve_forever()
`

test('containerd: ctr run --cni', { skip: lacks('ctr', 'containerd', 'runc'), timeout: 500_000 }, async (t) => {
  const dir = home(t)
  const root = rootfs(dir)
  const address = join(dir, 'c.sock')
  const toml = join(dir, 'containerd.toml')
  const settings = [
    'version = 2',
    `root = "${join(dir, 'root')}"`,
    `state = "${join(dir, 'state')}"`,
    'disabled_plugins = ["io.containerd.grpc.v1.cri"]',
    '[grpc]',
    `address = "${address}"`,
  ]
  writeFileSync(toml, settings.join('\n'))
  const containerd = execFile('containerd', ['-c', toml, '--log-level', 'error'])
  t.after(async () => {
    const gone = new Promise((resolve) => containerd.once('exit', resolve))
    containerd.kill()
    await gone
  })
  await eventually('containerd answers', () => spawnSync('ctr', ['-a', address, 'version']).status === 0)
  // ctr reads /etc/cni/net.d and its distribution's directory of plugins: it gets its own in a mount namespace of its own.
  const lab = new Lab(t, 'real-main.ts')
  await lab.up()
  conflist(dir, lab, '1.0.0')
  const real = ['/opt/cni/bin', '/usr/lib/cni'].find((d) => existsSync(join(d, 'loopback')))
  if (real === undefined) return t.skip('needs the CNI plugin loopback (containernetworking-plugins)')
  const ctr = async (id: string, options: string, ...command: string[]): Promise<string> => {
    const script = `
      set -e
      mkdir -p /etc/cni/net.d /opt/cni/bin /usr/lib/cni
      cp ${real}/loopback ${dir}/bin/loopback
      mount --bind ${dir}/net.d /etc/cni/net.d
      mount --bind ${dir}/bin /opt/cni/bin
      mount --bind ${dir}/bin /usr/lib/cni
      exec ctr -a ${address} run --rm --env PATH=/usr/sbin:/usr/bin ${options} --mount type=bind,src=/usr,dst=/usr,options=rbind:ro --rootfs ${root} ${id} "$@"`
    const argv = ['--mount', 'sh', '-c', script, 'sh', ...command]
    return (await run('unshare', argv, { timeout: 150_000 })).stdout
  }
  const unable = await ctr('ntplain', '', 'true').then(() => undefined, words)
  if (unable !== undefined) return t.skip(`ctr runs no container here: ${unable}`)
  const said = await ctr('ntone', '--cni', 'sh', '-c', 'ip -o -4 addr show eth0; ip route; ip route get 192.0.2.1')
  assert.match(said, /inet 192\.168\.\d+\.100\/24/)
  assert.match(said, /default via 192\.168\.\d+\.1 dev eth0/)
  await eventually('nothing is attached', async () => (await lab.client.vms()).length === 0)
})
