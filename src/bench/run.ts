/**
 * Start a benchmark: new user (when needed), network, mount and process namespaces, and the measuring process (main.ts) as the first process in
 * them. What it says comes back as messages.
 *
 * Nothing is left behind, whatever ends it: `unshare --kill-child` ends the first process with itself, the kernel ends everything else in a
 * process namespace with its first process, and namespaces, devices, rules and the private /run go with their last user.
 */
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { NoidError } from '../errors.ts'
import { Images, imagesDir } from '../images/index.ts'
import { ownPaths } from '../paths.ts'
import type { Message, Options, Report } from './contract.ts'

const MAIN = fileURLToPath(new URL(`./main${import.meta.url.endsWith('.ts') ? '.ts' : '.js'}`, import.meta.url))
const NAMESPACES = ['--net', '--mount', '--pid', '--fork', '--kill-child=KILL', '--mount-proc']

/**
 * Measure; `tell` gets steps and notes as they come.
 * @throws NoidError BENCH_FAILED
 */
export async function runBench(
  o: Options,
  version: string,
  tell: (m: Message) => void,
  signal: AbortSignal,
): Promise<Report> {
  const asUser = process.getuid?.() !== 0
  const request = JSON.stringify({ options: o, asUser, version, images: await imagesHere(o, asUser, tell, signal) })
  const user = asUser ? ['--user', '--map-root-user'] : []
  const node = [process.execPath, '--disable-warning=ExperimentalWarning', MAIN, request]
  const child = spawn('unshare', [...user, ...NAMESPACES, ...node], {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, NODE_OPTIONS: '', NODE_TEST_CONTEXT: undefined, NOID_IMAGES_DIR: images() },
  })
  child.stdin.on('error', () => {})
  const stop = (): void => {
    child.kill('SIGKILL')
  }
  signal.addEventListener('abort', stop, { once: true })
  process.once('exit', stop)
  let words = ''
  child.stderr.on('data', (d: Buffer) => {
    words = (words + d).slice(-1000)
  })
  let report: Report | undefined
  let failed: string | undefined
  const lines = createInterface({ input: child.stdout })
  lines.on('line', (l) => {
    const m = JSON.parse(l) as Message
    if (m.type === 'report') report = m.report
    else if (m.type === 'error') failed = m.message
    else tell(m)
  })
  try {
    await new Promise<void>((resolve, reject) => {
      child.once('error', (e: NodeJS.ErrnoException) =>
        reject(e.code === 'ENOENT' ? new NoidError('TOOL_MISSING', { tool: 'unshare', package: 'util-linux' }) : e),
      )
      child.once('close', () => resolve())
    })
  } finally {
    signal.removeEventListener('abort', stop)
    process.off('exit', stop)
  }
  signal.throwIfAborted()
  if (report !== undefined) return report
  throw new NoidError('BENCH_FAILED', { why: failed ?? (words.trim().split('\n').at(-1) || 'it ended without a word') })
}

const images = (): string => imagesDir(ownPaths().stateDir)

/** Why VMs of which image are not booted, by its name; the measuring process has no internet to build one with. `tiny` is built here, `debian` is dear. */
async function imagesHere(
  o: Options,
  asUser: boolean,
  tell: (m: Message) => void,
  signal: AbortSignal,
): Promise<Record<string, string>> {
  const none = asUser ? 'the bench boots VMs as root only' : ''
  const why: Record<string, string> = { sandbox: none, tiny: none, debian: none }
  const wanted = o.only.length === 0 || o.only.some((n) => n.startsWith('boot') || n.startsWith('qemu'))
  if (asUser || o.quick || !wanted) return why
  const store = new Images(images(), () => {})
  if (store.info('debian').id === null) why.debian = 'its image is not built yet: noid image build debian'
  try {
    await store.resolve('tiny', (text) => tell({ type: 'step', text, done: 0, total: 1 }), signal)
  } catch (e) {
    why.tiny = (e as Error).message
  }
  return why
}
