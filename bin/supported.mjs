/**
 * Runs what a door of bin/ opens under the Node that noid supports, whichever Node it was started with (20 or newer).
 *
 * noid brings its Node along as an npm package. An older one hands over to it: by execve where Node has it, otherwise
 * as a child with the same descriptors whose signals and exit code are this process's own. Plain JavaScript without
 * dependencies, because it must run where nothing else does.
 */
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'

const SUPPORTED = 26

/**
 * @param {string} door the file that was started
 * @param {(argv: string[]) => Promise<void>} open what it opens
 */
export async function supported(door, open) {
  if (Number.parseInt(process.versions.node, 10) >= SUPPORTED) await open(process.argv.slice(2))
  else await handOver(broughtNode(door), door)
}

/** The module at src/PATH.ts in a checkout, dist/src/PATH.js in what is published. */
export async function load(path) {
  const source = new URL(`../src/${path}.ts`, import.meta.url)
  return import((existsSync(source) ? source : new URL(`../dist/src/${path}.js`, import.meta.url)).href)
}

/** The node binary of the `node` package, next to noid or hoisted above it. */
function broughtNode(door) {
  let root
  try {
    root = dirname(createRequire(door).resolve('node/package.json'))
  } catch {
    root = undefined
  }
  const binary = root && join(root, 'bin', 'node')
  if (binary && existsSync(binary)) return binary
  process.stderr.write(
    `noid: Node ${SUPPORTED} or newer is needed and this is ${process.versions.node}\n` +
      '  noid brings one along as the npm package "node": run npm install (with its install scripts) again\n',
  )
  process.exit(1)
}

async function handOver(node, door) {
  const argv = ['--disable-warning=ExperimentalWarning', door, ...process.argv.slice(2)]
  if (typeof process.execve === 'function') {
    try {
      process.execve(node, [node, ...argv], process.env)
    } catch {
      // Fall through to a child.
    }
  }
  const { spawn } = await import('node:child_process')
  const child = spawn(node, argv, { stdio: 'inherit' })
  // Ctrl-C on a terminal reaches both processes by itself; everything else is passed on.
  const terminal = process.stdin.isTTY || process.stdout.isTTY || process.stderr.isTTY
  for (const name of ['SIGINT', 'SIGQUIT']) process.on(name, () => terminal || child.kill(name))
  for (const name of ['SIGTERM', 'SIGHUP', 'SIGUSR1', 'SIGUSR2']) process.on(name, () => child.kill(name))
  child.on('error', (e) => {
    process.stderr.write(`noid: ${node} could not be started (${e.code})\n`)
    process.exit(1)
  })
  child.on('exit', (code, signal) => {
    if (signal === null) process.exit(code)
    process.removeAllListeners(signal)
    process.kill(process.pid, signal)
  })
}
