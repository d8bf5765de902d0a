// node paint.mjs < {client, url, model, ...generateImage's own} : what one of the npm clients makes of a request, as JSON.
import { createBlackForestLabs } from '@ai-sdk/black-forest-labs';
import { createGateway } from '@ai-sdk/gateway';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateImage } from 'ai';

const asked = JSON.parse(await new Promise(resolve => {
  let text = '';
  process.stdin.on('data', part => (text += part)).on('end', () => resolve(text));
}));
const { client, url, key = 'local', model, images, mask, prompt, ...options } = asked;
const bytes = text => Buffer.from(text, 'base64');
const models = {
  snippet: () => {
    globalThis.AI_SDK_DEFAULT_PROVIDER = createOpenAICompatible({ name: 'klein', baseURL: `${url}/v1`, apiKey: key });
    return model; // a bare string
  },
  compatible: () => createOpenAICompatible({ name: 'klein', baseURL: `${url}/v1`, apiKey: key }).imageModel(model),
  openai: () => createOpenAI({ baseURL: `${url}/v1`, apiKey: key }).image(model),
  bfl: () => createBlackForestLabs({ baseURL: `${url}/bfl/v1`, apiKey: key, pollIntervalMillis: 50 }).image(model),
  gateway: () => createGateway({ baseURL: `${url}/v1/ai`, apiKey: key }).imageModel(model),
};

try {
  const result = await generateImage({
    model: models[client](),
    prompt: images ? { text: prompt, images: images.map(bytes), ...(mask && { mask: bytes(mask) }) } : prompt,
    maxRetries: 0,
    ...options,
  });
  const warnings = result.warnings.map(each => each.feature ?? each.type);
  console.log(JSON.stringify({ images: result.images.map(each => each.base64), warnings, metadata: result.providerMetadata }));
} catch (error) {
  console.log(JSON.stringify({ error: error.message, name: error.name, status: error.statusCode ?? null }));
}
