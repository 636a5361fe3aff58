/**
 * One VM for a test, with or without rights: a directory, a runtime, a cable and a DHCP server at its other end.
 *
 * The server (dhcp-answerer.ts) is a process in the namespace where the far end of a veth lies: the host's as root, the
 * VM's wire namespace as a user. Everything is removed at the end, also after a failure.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Attachment } from '../../src/plugins/contract.ts'
import type { ExecRequest, Runtime, VmHandle, VmSpec } from '../../src/runtimes/contract.ts'
import { runtimes } from '../../src/runtimes/index.ts'

export const privileged = process.getuid?.() === 0
export const MAC = '02:00:00:00:00:11'
const answererFile = fileURLToPath(new URL('./dhcp-answerer.ts', import.meta.url))

export interface Ran {
  readonly code: number
  readonly out: string
  readonly err: string
}

export interface Lab extends AsyncDisposable {
  readonly runtime: Runtime
  readonly vm: VmSpec
  /** Another runtime over the same state, as a daemon that was started again has it. */
  again(): Promise<Runtime>
  run(h: VmHandle, argv: readonly string[], o?: Partial<ExecRequest> & { input?: string }): Promise<Ran>
  /** Plug a veth named eth0 into the VM and answer DHCP at its other end with these settings. */
  plug(h: VmHandle, answers?: object): Promise<Attachment>
  unplug(): void
  readonly log: () => string
}

export const never = new AbortController().signal

/** One for a run of tests, as a user's VMs share what is there (the skeleton). */
const home = mkdtempSync(join(tmpdir(), 'nt-sandbox-'))
process.once('exit', () => rmSync(home, { recursive: true, force: true }))

async function newRuntime(): Promise<Runtime> {
  const make = await runtimes[0]!.load()
  return make({ privileged, runDir: join(home, 'run'), stateDir: join(home, 'state'), log: () => {} })
}

export async function lab(spec: Partial<VmSpec> = {}): Promise<Lab> {
  const runtime = await newRuntime()
  const id = randomBytes(8).toString('hex')
  const vm: VmSpec = { id, name: 'web', dir: join(home, 'state', 'vms', id), cpus: 1, memMib: 64, ...spec }
  const far = `nt${id.slice(0, 8)}`
  let server: ChildProcess | undefined
  let there: readonly string[] = []
  const unplug = () => {
    server?.kill('SIGKILL')
    server = undefined
    try {
      const remove = [...there, 'ip', 'link', 'delete', far]
      execFileSync(remove[0]!, remove.slice(1), { stdio: 'ignore' })
    } catch {
      // It went with the VM.
    }
  }
  return {
    runtime,
    vm,
    again: newRuntime,
    run: (h, argv, o) => run(runtime, vm, h, argv, o),
    plug: async (h, answers = {}) => {
      if (server !== undefined) unplug()
      there = h.wireNetns === undefined ? [] : enter(Number(h.wireNetns.split('/')[2]))
      const add = [
        'ip',
        'link',
        'add',
        far,
        'type',
        'veth',
        'peer',
        'name',
        'eth0',
        'address',
        MAC,
        'netns',
        String(h.pid),
      ]
      execute([...there, ...add])
      execute([...there, 'ip', 'link', 'set', far, 'up'])
      server = await answer(there, far, answers)
      return attachment(h)
    },
    unplug,
    log: () => readFileSync(runtime.logFile(vm), 'utf8'),
    [Symbol.asyncDispose]: async () => {
      unplug()
      await runtime.stop(vm, undefined, 0)
      await runtime.destroy(vm)
      rmSync(vm.dir, { recursive: true, force: true })
    },
  }
}

export const enter = (pid: number): string[] => [
  ...['nsenter', '--target', String(pid), '--user', '--net', '--preserve-credentials'],
]

const execute = (argv: readonly string[]): void => {
  execFileSync(argv[0]!, argv.slice(1), { stdio: ['ignore', 'ignore', 'pipe'] })
}

function answer(there: readonly string[], link: string, answers: object): Promise<ChildProcess> {
  const argv = [...there, process.execPath, answererFile, link, JSON.stringify(answers)]
  const child = spawn(argv[0]!, argv.slice(1), { stdio: ['ignore', 'pipe', 'inherit'] })
  return new Promise((resolve, reject) => {
    child.once('exit', (code) => reject(new Error(`the answerer ended with ${code}`)))
    child.stdout.once('data', () => resolve(child))
  })
}

export const attachment = (h: VmHandle, o: Partial<Attachment> = {}): Attachment => ({
  id: 'a',
  network: 'n',
  nic: { kind: 'netdev', ifname: 'eth0', netns: h.netns as string },
  mac: MAC,
  mtu: 1500,
  addresses: [],
  routes: [],
  configuredBy: 'dhcp',
  state: null,
  ...o,
})

export async function run(
  runtime: Runtime,
  vm: VmSpec,
  h: VmHandle,
  argv: readonly string[],
  o: Partial<ExecRequest> & { input?: string } = {},
): Promise<Ran> {
  const { input, ...request } = o
  const s = await runtime.exec(vm, h, { argv, env: {}, tty: false, ...request })
  const text = { out: '', err: '' }
  s.stdout.setEncoding('utf8').on('data', (t) => {
    text.out += t
  })
  s.stderr?.setEncoding('utf8').on('data', (t) => {
    text.err += t
  })
  const ended = Promise.all([s.stdout, s.stderr].map((x) => x && new Promise((r) => x.once('close', r))))
  s.stdin.end(input ?? '')
  const code = await s.exit
  await ended
  return { code, ...text }
}

/** What a test of leftovers compares: processes that name the VM, mounts below its directory, its namespaces. */
export function leftovers(vm: VmSpec, namespaces: readonly string[] = []): string[] {
  const found: string[] = []
  for (const pid of readdirSync('/proc')) {
    if (!/^\d+$/.test(pid) || Number(pid) === process.pid) continue
    try {
      if (readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(vm.id)) found.push(`process ${pid}`)
      for (const kind of ['net', 'mnt', 'pid', 'user'])
        if (namespaces.includes(readlinkSync(`/proc/${pid}/ns/${kind}`))) found.push(`${kind} of process ${pid}`)
    } catch {
      // It ended, or is another user's.
    }
  }
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n'))
    if (line.includes(vm.id)) found.push(`mount ${line.split(' ')[4]}`)
  return found
}

/** The namespaces of a VM by their names. */
export const namespacesOf = (h: VmHandle): string[] =>
  ['net', 'mnt', 'pid', 'user'].map((k) => readlinkSync(`/proc/${h.pid}/ns/${k === 'pid' ? 'pid_for_children' : k}`))
