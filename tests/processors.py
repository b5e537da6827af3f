"""The families' own processors, built without a hub: from pixels and chat messages to the zoo's models and back.

Each has its stock processing class, its stock PIL image processor with sizes for the zoo's tiny tower, the chat
template of its checkpoints (shortened: no tools, no thinking), and a tokenizer of single characters that spells as
the family's does and holds the special tokens that its processor writes, with the zoo's ids.

What the stock classes want but images do not need is put in their place, because this project has no torchvision:
every video processor (`NoVideos`), Pixtral's way to import a function of sizes, and num2words (SmolVLM's videos).
`MISSING` lists them all, so that a test notices when they can be had.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import transformers as hf
from packaging.version import Version
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import processing_utils, video_processing_utils
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from zoo import animal, llava, tiled
from zoo.animal import PATCH, VOCABULARY

# What is not to be had here: the stock class, and what its error names.
MISSING = {
    "LlavaOnevisionVideoProcessor": "Torchvision",
    "LlavaNextVideoVideoProcessor": "Torchvision",
    "Qwen2VLVideoProcessor": "Torchvision",
    "Qwen3VLVideoProcessor": "Torchvision",
    "Glm4vVideoProcessor": "Torchvision",
    "InternVLVideoProcessor": "Torchvision",
    "SmolVLMVideoProcessor": "Torchvision",
    "Gemma4VideoProcessor": "Torchvision",
    "PixtralProcessor": "Torchvision",
    "SmolVLMProcessor": "num2words",
}


# What processors ask of a video processor; before 5.20 it had the other name.
VIDEO_PROCESSOR = getattr(video_processing_utils, "VideoProcessorMixin", None) or (
    video_processing_utils.BaseVideoProcessor
)


class NoVideos(VIDEO_PROCESSOR):
    """In the place of a video processor, which the stock processors want even for images."""

    num_frames = fps = None  # SmolVLM's chat template asks
    merge_size = temporal_patch_size = 2  # the writing of Qwen3-VL's prompts asks


# Tokenizers

LETTERS = [chr(code) for code in range(ord("!"), ord("~") + 1)]
MARKERS = range(animal.ROW_COLUMN + 36, VOCABULARY)  # ids for the marks of chat templates
ROWS_AND_COLUMNS = {
    f"<row_{row + 1}_col_{column + 1}>": animal.ROW_COLUMN + 6 * row + column
    for row in range(6)
    for column in range(6)
}


def byte_level(vocabulary):
    """As Qwen's, Llama 3's, GPT-2's and Mistral's newer ones."""
    tokenizer = Tokenizer(models.BPE(vocabulary("Ġ", "Ċ"), [("Ċ", "Ċ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentence_piece(vocabulary):
    """As Gemma's."""
    tokenizer = Tokenizer(models.BPE(vocabulary("▁", "\n"), [("\n", "\n")]))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return tokenizer


def llama(vocabulary):
    """As Llama 1's and 2's, and Mistral 7B's: with a space before each text, also after special tokens."""
    tokenizer = sentence_piece(vocabulary)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), tokenizer.normalizer])
    tokenizer.decoder = decoders.Sequence([tokenizer.decoder, decoders.Strip(" ", 1, 0)])
    return tokenizer


@dataclass(frozen=True)
class Spelling:
    """What the tokenizer of a family's checkpoints knows.

    Attributes:
        alphabet: how it writes characters.
        tokens: special tokens with the zoo's ids.
        markers: those of the chat template.
        names: under which the tokenizer itself offers tokens, where the processor asks it.
        unnamed: special tokens that no list of the tokenizer's configuration names.
        bos: the first token.
        begins: whether it writes it by itself.
    """

    alphabet: Callable[..., Tokenizer]
    tokens: dict[str, int]
    markers: tuple[str, ...] = ()
    names: tuple[tuple[str, str], ...] = ()
    unnamed: tuple[str, ...] = ()
    bos: str = "<s>"
    begins: bool = False

    def build(self):
        """The tokenizer, padding on the left as generation needs it."""
        special = {"<pad>": animal.PAD, self.bos: animal.BOS, **self.tokens}
        special |= dict(zip(self.markers, MARKERS, strict=False))

        def vocabulary(space, newline):
            known = {newline: animal.NEWLINE, 2 * newline: animal.PARAGRAPH}
            known |= {letter: animal.TEXT.start + number for number, letter in enumerate([space, *LETTERS])}
            known |= special
            return known | {f"<unused_{id}>": id for id in set(range(VOCABULARY)) - set(known.values())}

        tokenizer = self.alphabet(vocabulary)
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
        if self.begins:
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{self.bos} $A", special_tokens=[(self.bos, animal.BOS)]
            )
        return hf.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token=self.bos,
            extra_special_tokens=[token for token in special if token not in self.unnamed],
            model_specific_special_tokens=dict(self.names),
            padding_side="left",
        )


# Chat templates: of the checkpoints named, without what they say of tools, thinking and sounds.

LLAVA = """
{%- for message in messages -%}
{%- if message.role != 'system' -%}{{ message.role.upper() + ': ' }}{%- endif -%}
{%- for part in message.content if part.type == 'image' -%}{{ '<image>\n' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text + ' ' }}{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""  # llava-1.5-7b-hf, LLaVA-NeXT-Video-7B-hf
LLAVA_MISTRAL = """
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ '<<SYS>>\n' + message.content[0].text + '\n<</SYS>>\n\n' }}
{%- elif message.role == 'user' -%}{{ '[INST] ' }}
{%- for part in message.content if part.type == 'image' -%}{{ '<image>\n' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}{{ ' [/INST]' }}
{%- else -%}{{ ' ' + message.content[0].text + '</s> ' }}{%- endif -%}
{%- endfor -%}
"""  # llava-v1.6-mistral-7b-hf
ONEVISION = """
{%- for message in messages -%}{{ '<|im_start|>' + message.role + ' ' }}
{%- for part in message.content if part.type == 'image' -%}{{ '<image>' }}{%- endfor -%}
{%- for part in message.content if part.type == 'text' -%}{{ '\n' + part.text }}{%- endfor -%}
{{ '<|im_end|>' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""  # llava-onevision-qwen2-7b-ov-hf
QWEN = """
{%- for message in messages -%}
{%- if loop.first and message.role != 'system' and default_system -%}
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif -%}
{{ '<|im_start|>' + message.role + '\n' }}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{{ '<|im_end|>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""  # Qwen3-VL-8B-Instruct
QWEN2 = "{%- set default_system = true -%}" + QWEN  # Qwen2-VL-7B-Instruct, Qwen2.5-VL-7B-Instruct
GLM = """
{{- '[gMASK]<sop>' -}}
{%- for message in messages -%}{{ '<|' + message.role + '|>\n' }}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ '<|begin_of_image|><|image|><|end_of_image|>' }}
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\n<think>' }}{%- endif -%}
"""  # GLM-4.1V-9B-Thinking
INTERNVL = """
{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\n' }}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ '<IMG_CONTEXT>\n' }}{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{{ '<|im_end|>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""  # InternVL3-8B-hf
IDEFICS = """
{{- bos_token -}}
{%- for message in messages -%}
{{ message.role.capitalize() + (':' if message.content[0].type == 'image' else ': ') }}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ '<image>' }}{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{{ '<end_of_utterance>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""  # Idefics3-8B-Llama3, SmolVLM-Instruct
MISTRAL = """
{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ '[SYSTEM_PROMPT]' + message.content[0].text + '[/SYSTEM_PROMPT]' }}
{%- elif message.role == 'user' -%}{{ '[INST]' }}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ '[IMG]' }}{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{{ '[/INST]' }}
{%- else -%}{{ message.content[0].text + '</s>' }}{%- endif -%}
{%- endfor -%}
"""  # Mistral-Small-3.1-24B-Instruct-2503, pixtral-12b
GEMMA3 = """
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{%- set prefix = messages[0].content[0].text + '\n\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}{%- set prefix = '' -%}{%- set turns = messages -%}{%- endif -%}
{%- for message in turns -%}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
{{- prefix if loop.first -}}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ '<start_of_image>' }}{%- else -%}{{ part.text | trim }}{%- endif -%}
{%- endfor -%}{{ '<end_of_turn>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""  # gemma-3-4b-it: the system prompt becomes a part of the first user turn
GEMMA4 = """
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ '\n\n<|image|>\n\n' }}{%- else -%}{{ part.text | trim }}{%- endif -%}
{%- endfor -%}{{ '<turn|>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|turn>model\n' }}{%- endif -%}
"""  # gemma-4-E2B-it


# Processors

LLAVA_TOKENS = {"<image>": animal.IMAGE, "<video>": animal.VIDEO}
CHATML = ("<|im_start|>", "<|im_end|>")
CLIP = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
QWEN_SPELLING = Spelling(
    byte_level,
    {
        "<|image_pad|>": animal.IMAGE,
        "<|video_pad|>": animal.VIDEO,
        "<|vision_start|>": animal.START,
        "<|vision_end|>": animal.END,
    },
    CHATML,
    bos="<|endoftext|>",
)
IDEFICS_TOKENS = {
    "<image>": animal.IMAGE,
    "<fake_token_around_image>": animal.FAKE,
    "<global-img>": animal.GLOBAL,
    **ROWS_AND_COLUMNS,
}
PIXTRAL_SPELLING = Spelling(
    byte_level,
    {"[IMG]": animal.IMAGE, "[IMG_BREAK]": animal.BREAK, "[IMG_END]": animal.END},
    ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "</s>"),
    begins=True,
)


def square(side):
    return {"height": side, "width": side}


def anyres(kind):
    size = {"size": {"shortest_edge": llava.TILE}, "crop_size": square(llava.TILE)}
    return kind(image_grid_pinpoints=llava.PINPOINTS, **size)


def llava_onevision(tokenizer, template):
    return hf.LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(size=square(llava.TILE), image_grid_pinpoints=llava.PINPOINTS),
        tokenizer,
        NoVideos(),
        num_image_tokens=(llava.TILE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=llava.ASPECT,
        chat_template=template,
    )


def merging(kind, images, smallest):
    """Qwen-VL and GLM-V: from ``smallest`` to 48 x 32 pixels."""

    def build(tokenizer, template):
        size = {"shortest_edge": smallest, "longest_edge": smallest // (16 * 16) * 48 * 32}
        own = images(size=size, patch_size=PATCH, merge_size=2, temporal_patch_size=2)
        return getattr(hf, kind)(own, tokenizer, NoVideos(), chat_template=template)

    return build


def internvl(tokenizer, template):
    images = GotOcr2ImageProcessorPil(size=square(tiled.TILE), max_patches=4)
    return hf.InternVLProcessor(images, tokenizer, NoVideos(), image_seq_length=9, chat_template=template)


def in_tiles(images):
    return images(size={"longest_edge": 3 * tiled.TILE}, max_image_size={"longest_edge": tiled.TILE})


def idefics3(tokenizer, template):
    images = in_tiles(Idefics3ImageProcessorPil)
    return hf.Idefics3Processor(images, tokenizer, image_seq_len=9, chat_template=template)


def smolvlm(tokenizer, template):
    module = importlib.import_module("transformers.models.smolvlm.processing_smolvlm")
    with mock.patch.object(module, "num2words", str):
        return hf.SmolVLMProcessor(
            in_tiles(SmolVLMImageProcessorPil), tokenizer, NoVideos(), image_seq_len=4, chat_template=template
        )


def pixtral(merge):
    """The stock file, given the PIL twin of the one function that it imports from beside torchvision."""

    def build(tokenizer, template):
        twin = SimpleNamespace(
            get_resize_output_image_size=image_processing_pil_pixtral.get_resize_output_image_size
        )
        beside = "transformers.models.pixtral.image_processing_pixtral"
        with mock.patch.dict(sys.modules, {beside: twin}):
            module = importlib.import_module("transformers.models.pixtral.processing_pixtral")
        return module.PixtralProcessor(
            PixtralImageProcessorPil(size={"longest_edge": 40}, patch_size=PATCH),
            tokenizer,
            patch_size=PATCH,
            spatial_merge_size=merge,
            chat_template=template,
        )

    return build


def gemma3(tokenizer, template):
    images = Gemma3ImageProcessorPil(size=square(32))
    return hf.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=16)


def paligemma(tokenizer, template):
    images = SiglipImageProcessorPil(size=square(16))
    images.image_seq_length = 16
    return hf.PaliGemmaProcessor(images, tokenizer)


def gemma4(tokenizer, template):
    images = Gemma4ImageProcessorPil(patch_size=PATCH, pooling_kernel_size=2, max_soft_tokens=70)
    sounds = hf.Gemma4AudioFeatureExtractor()
    return hf.Gemma4Processor(sounds, images, tokenizer, NoVideos(), chat_template=template, image_seq_length=70)


@dataclass(frozen=True)
class Kit:
    """A family's processor.

    Attributes:
        animal: its model, in the zoo.
        spelling: its tokenizer.
        template: None for PaliGemma, whose checkpoints have none.
        processor: from a tokenizer and a template.
    """

    animal: str
    spelling: Spelling
    template: str | None
    processor: Callable[..., hf.ProcessorMixin]

    def build(self):
        """The processor."""
        # Where transformers looks for the class of video processors, which it hides without torchvision.
        known = processing_utils.transformers_module
        with mock.patch.object(known, VIDEO_PROCESSOR.__name__, VIDEO_PROCESSOR, create=True):
            return self.processor(self.spelling.build(), self.template)


KITS = {
    "llava": Kit(
        "llava",
        Spelling(llama, LLAVA_TOKENS, begins=True),
        LLAVA,
        lambda tokenizer, template: hf.LlavaProcessor(
            CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=square(24)),
            tokenizer,
            chat_template=template,
            **CLIP,
        ),
    ),
    "llava_pixtral": Kit("llava_pixtral", PIXTRAL_SPELLING, MISTRAL, pixtral(1)),
    "mistral3": Kit("mistral3", PIXTRAL_SPELLING, MISTRAL, pixtral(2)),
    "llava_next": Kit(
        "llava_next",
        Spelling(llama, LLAVA_TOKENS, ("</s>",), begins=True),
        LLAVA_MISTRAL,
        lambda tokenizer, template: hf.LlavaNextProcessor(
            anyres(LlavaNextImageProcessorPil), tokenizer, chat_template=template, **CLIP
        ),
    ),
    "llava_next_video": Kit(
        "llava_next_video_image",
        Spelling(llama, LLAVA_TOKENS, begins=True),
        LLAVA,
        lambda tokenizer, template: hf.LlavaNextVideoProcessor(
            NoVideos(), anyres(LlavaNextImageProcessorPil), tokenizer, chat_template=template, **CLIP
        ),
    ),
    "llava_onevision": Kit(
        "llava_onevision",
        Spelling(byte_level, LLAVA_TOKENS, CHATML, bos="<|endoftext|>"),
        ONEVISION,
        llava_onevision,
    ),
    "qwen2_vl": Kit(
        "qwen2_vl", QWEN_SPELLING, QWEN2, merging("Qwen2VLProcessor", Qwen2VLImageProcessorPil, 16 * 16)
    ),
    "qwen2_5_vl": Kit(
        "qwen2_5_vl", QWEN_SPELLING, QWEN2, merging("Qwen2_5_VLProcessor", Qwen2VLImageProcessorPil, 16 * 16)
    ),
    "qwen3_vl": Kit(
        "qwen3_vl", QWEN_SPELLING, QWEN, merging("Qwen3VLProcessor", Qwen2VLImageProcessorPil, 16 * 16)
    ),
    "glm4v": Kit(
        "glm4v",
        Spelling(
            byte_level,
            {
                "<|image|>": animal.IMAGE,
                "<|video|>": animal.VIDEO,
                "<|begin_of_image|>": animal.START,
                "<|end_of_image|>": animal.END,
                "<|begin_of_video|>": animal.VIDEO_START,
                "<|end_of_video|>": animal.VIDEO_END,
            },
            ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<think>"),
            bos="<|endoftext|>",
        ),
        GLM,
        merging("Glm4vProcessor", Glm4vImageProcessorPil, 2 * 16 * 16),  # it counts the frames, too
    ),
    "internvl": Kit(
        "internvl",
        Spelling(
            byte_level,
            {
                "<IMG_CONTEXT>": animal.IMAGE,
                "<video>": animal.VIDEO,
                "<img>": animal.START,
                "</img>": animal.END,
            },
            CHATML,
            names=(
                ("start_image_token", "<img>"),
                ("end_image_token", "</img>"),
                ("context_image_token", "<IMG_CONTEXT>"),
                ("video_token", "<video>"),
            ),
            bos="<|endoftext|>",
        ),
        INTERNVL,
        internvl,
    ),
    "idefics3": Kit(
        "idefics3",
        Spelling(
            byte_level,
            IDEFICS_TOKENS,
            ("<end_of_utterance>",),
            unnamed=("<global-img>", *ROWS_AND_COLUMNS),
            bos="<|begin_of_text|>",
            begins=True,
        ),
        IDEFICS,
        idefics3,
    ),
    "smolvlm": Kit(
        "smolvlm",
        Spelling(
            byte_level,
            {**IDEFICS_TOKENS, "<video>": animal.VIDEO},
            ("<end_of_utterance>",),
            names=(
                ("fake_image_token", "<fake_token_around_image>"),
                ("image_token", "<image>"),
                ("end_of_utterance_token", "<end_of_utterance>"),
                ("global_image_token", "<global-img>"),
            ),
            unnamed=tuple(ROWS_AND_COLUMNS),
            bos="<|im_start|>",
        ),
        IDEFICS,
        smolvlm,
    ),
    "gemma3": Kit(
        "gemma3",
        Spelling(
            sentence_piece,
            {
                "<image_soft_token>": animal.IMAGE,
                "<start_of_image>": animal.START,
                "<end_of_image>": animal.END,
            },
            ("<start_of_turn>", "<end_of_turn>"),
            names=(
                ("image_token", "<image_soft_token>"),
                ("boi_token", "<start_of_image>"),
                ("eoi_token", "<end_of_image>"),
            ),
            bos="<bos>",
            begins=True,
        ),
        GEMMA3,
        gemma3,
    ),
    "paligemma": Kit(
        "paligemma", Spelling(sentence_piece, {"<image>": animal.IMAGE}, bos="<bos>"), None, paligemma
    ),
    "gemma4": Kit(
        "gemma4",
        Spelling(
            sentence_piece,
            {
                "<|image|>": animal.IMAGE,
                "<|video|>": animal.VIDEO,
                "<|audio|>": animal.AUDIO,
                "<|image>": animal.START,
                "<image|>": animal.END,
            },
            ("<|turn>", "<turn|>", "<|audio>", "<audio|>"),
            names=(
                ("image_token", "<|image|>"),
                ("boi_token", "<|image>"),
                ("eoi_token", "<image|>"),
                ("audio_token", "<|audio|>"),
                ("boa_token", "<|audio>"),
                ("eoa_token", "<audio|>"),
            ),
            bos="<bos>",
            begins=True,
        ),
        GEMMA4,
        gemma4,
    ),
}

# Processors that an older transformers cannot build without torchvision, or families that need a newer one.
SINCE = {"smolvlm": "5.21.1", "gemma4": "5.23.0"}
KITS = {name: kit for name, kit in KITS.items() if Version(SINCE.get(name, "5.18.0")) <= Version(hf.__version__)}
