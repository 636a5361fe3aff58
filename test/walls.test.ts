/**
 * The rooms of src/ and who may import whom (ARCHITECTURE.md, "Rooms"). Imports are read as text: static, dynamic and
 * re-exports alike, because a wall that a clever import passes is no wall.
 */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

interface Import {
  readonly file: string
  /** A path below the root, `node:…`, or a package. */
  readonly target: string
  readonly typeOnly: boolean
}

function sources(dir: string): string[] {
  return readdirSync(join(root, dir), { withFileTypes: true }).flatMap((e) => {
    const path = join(dir, e.name)
    if (e.isDirectory()) return e.name === 'node_modules' ? [] : sources(path)
    return e.name.endsWith('.ts') ? [path] : []
  })
}

const STATIC = /^[ \t]*(?:import|export)\s+(type\s+)?(?:[^'";]*?\sfrom\s+)?['"]([^'"]+)['"]/gm
const DYNAMIC = /(typeof\s+)?\bimport\(\s*['"]([^'"]+)['"]\s*\)(\.[A-Z])?/g

function imports(file: string): Import[] {
  // Comments go first: a sentence in one may read like an import.
  const text = readFileSync(join(root, file), 'utf8')
    .replace(/\/\*[\s\S]*?\*\//g, '')
    .replace(/^\s*\/\/.*$/gm, '')
  const resolve = (name: string): string =>
    name.startsWith('.') ? relative(root, join(root, dirname(file), name)) : name
  return [
    ...[...text.matchAll(STATIC)].map((m) => ({
      file,
      target: resolve(m[2] as string),
      typeOnly: m[1] !== undefined,
    })),
    // import('x').Name is a type, import('x') alone loads.
    ...[...text.matchAll(DYNAMIC)].map((m) => ({
      file,
      target: resolve(m[2] as string),
      typeOnly: m[1] !== undefined || m[3] !== undefined,
    })),
  ]
}

interface Wall {
  /** Files this is about. */
  readonly room: RegExp
  /** What they may import. */
  readonly may: readonly RegExp[]
  /** What they may import as types only. */
  readonly mayType?: readonly RegExp[]
}

const NODE = /^node:/
const walls: Record<string, Wall> = {
  'errors, paths, logs, locks and state files stand alone': {
    room: /^src\/(errors|lock|paths|logs|state-file)\.ts$/,
    may: [NODE, /^src\/errors\.ts$/],
  },
  'contracts are types': {
    room: /^src\/(plugins|runtimes)\/contract\.ts$/,
    may: [],
    mayType: [/^src\/plugins\/contract\.ts$/, NODE],
  },
  'api → errors': { room: /^src\/api\//, may: [/^src\/api\//, /^src\/errors\.ts$/, /^zod$/] },
  'client → api, and never zod': {
    room: /^src\/client\//,
    may: [/^src\/client\//, /^src\/api\/(exec|routes)\.ts$/, /^src\/(errors|paths)\.ts$/, NODE],
    mayType: [/^src\/api\/contract\.ts$/, /^src\/plugins\/contract\.ts$/],
  },
  'commands → cli → client': {
    room: /^src\/(commands|cli)\//,
    // doctor and quickstart look at this machine themselves: they must work without a daemon.
    may: [
      /^src\/(cli|client)\//,
      /^src\/api\/(exec|routes)\.ts$/,
      /^src\/(errors|paths|logs)\.ts$/,
      /^src\/runtimes\/(sandbox|qemu)\/doctor\.ts$/,
      /^src\/images\/doctor\.ts$/,
      // So do the conformance kit and the benchmark.
      /^src\/plugins\/conformance\/index\.ts$/,
      /^src\/bench\/(run|table|html)\.ts$/,
      /^@oclif\//,

      NODE,
    ],
    mayType: [/^src\/api\/contract\.ts$/, /^src\/plugins\/contract\.ts$/, /^src\/bench\/contract\.ts$/],
  },
  'bench loads backends as the daemon does, and measures from outside': {
    room: /^src\/bench\//,
    may: [
      /^src\/(bench|sys)\//,
      /^src\/plugins\/(registry|sources)\.ts$/,
      /^src\/(errors|paths)\.ts$/,
      // It boots VMs as the runtimes' kit does.
      /^src\/runtimes\/(index|conformance\/environment)\.ts$/,
      /^src\/images\/index\.ts$/,
      NODE,
    ],
    mayType: [/^src\/plugins\/contract\.ts$/, /^src\/runtimes\/dhcp-client\/lease\.ts$/],
  },
  'cni → client': {
    room: /^src\/cni\//,
    may: [/^src\/(cni|client)\//, /^src\/errors\.ts$/, NODE],
    mayType: [/^src\/api\/contract\.ts$/],
  },
  'daemon → plugins, runtimes, api': {
    room: /^src\/daemon\//,
    may: [
      /^src\/(daemon|plugins|runtimes|images|api|sys)\//,
      /^src\/(errors|lock|paths|logs)\.ts$/,
      /^(fastify|zod|ipaddr\.js)$/,
      NODE,
    ],
  },
  'plugins never reach into the daemon or the engine': {
    room: /^src\/plugins\//,
    may: [
      /^src\/(plugins|sys)\//,
      /^src\/dataplane\/(protocol|control)\.ts$/,
      /^src\/(errors|state-file)\.ts$/,
      /^#tun-tap$/,
      /^(zod|ipaddr\.js|@oclif\/core)$/,
      /^(#dhcp-packet(\/v6)?|dns-packet)$/,
      NODE,
    ],
    // The conformance kit asks for leases as a sandbox does.
    mayType: [/^src\/runtimes\/dhcp-client\/lease\.ts$/],
  },
  'images know who builds and imports, not who boots': {
    room: /^src\/images\//,
    may: [/^src\/images\//, /^src\/(errors|lock|state-file)\.ts$/, NODE],
  },
  'the runtimes’ kit plugs VMs into a real backend': {
    room: /^src\/runtimes\/conformance\//,
    may: [
      /^src\/runtimes\/(conformance\/|contract\.ts$)/,
      /^src\/plugins\/(sources|conformance\/host-state)\.ts$/,
      NODE,
    ],
    mayType: [/^src\/plugins\/contract\.ts$/],
  },
  'runtimes know no backend': {
    room: /^src\/runtimes\/(?!conformance\/)/,
    may: [/^src\/(runtimes|images|sys)\//, /^src\/(errors|state-file)\.ts$/, /^#(dhcp-packet(\/v6)?|tun-tap)$/, NODE],
    mayType: [/^src\/plugins\/contract\.ts$/],
  },
  'dataplane → netstack, sys': {
    room: /^src\/dataplane\//,
    may: [/^src\/(dataplane|netstack|sys)\//, /^src\/errors\.ts$/, /^#(tun-tap|dhcp-packet(\/v6)?)$/, NODE],
    mayType: [/^src\/plugins\/contract\.ts$/],
  },
  'the netstack is pure': {
    room: /^src\/netstack\//,
    may: [/^src\/netstack\//, /^#dhcp-packet(\/v6)?$/, /^(dns-packet|lru-cache)$/],
    // The rows people are shown, and what a network is told to be.
    mayType: [/^src\/plugins\/contract\.ts$/, /^src\/dataplane\/protocol\.ts$/],
  },
  'wire knows no layer above it': {
    room: /^src\/netstack\/wire\//,
    may: [/^src\/netstack\/(wire|trace)\//, /^src\/netstack\/(arena|frame)\.ts$/],
  },
  'the switch knows no layer above it': {
    room: /^src\/netstack\/switch\//,
    may: [/^src\/netstack\/(switch|wire|trace)\//, /^src\/netstack\/[a-z-]+\.ts$/],
    mayType: [/^src\/plugins\/contract\.ts$/],
  },
  'sys is the only door to libc': { room: /^src\/sys\//, may: [/^src\/sys\//, /^koffi$/, NODE] },
  'packages stand alone': { room: /^packages\//, may: [/^packages\//, /^koffi$/, NODE] },
}

const all = [...sources('src'), ...sources('packages')].flatMap(imports)

for (const [name, wall] of Object.entries(walls)) {
  test(name, () => {
    const through = all
      .filter((i) => wall.room.test(i.file))
      .filter((i) => !wall.may.some((r) => r.test(i.target)))
      .filter((i) => !(i.typeOnly && wall.mayType?.some((r) => r.test(i.target))))
      .map((i) => `${i.file} imports ${i.target}`)
    assert.deepEqual(through, [])
  })
}

test('koffi has one door', () => {
  const users = all.filter((i) => i.target === 'koffi' && !i.typeOnly).map((i) => i.file)
  assert.deepEqual(
    users.filter((f) => !/^(src\/sys|packages\/tun-tap)\//.test(f)),
    [],
  )
})

test('every room has a wall', () => {
  const bare = [...new Set(all.map((i) => i.file))].filter((f) => !Object.values(walls).some((w) => w.room.test(f)))
  assert.deepEqual(bare, [])
})
